"""An errand in an office whose documents carry instructions that nobody entitled has given."""
