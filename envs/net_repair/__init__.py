"""NetRepair: find and mend what is wrong in a small simulated network."""
