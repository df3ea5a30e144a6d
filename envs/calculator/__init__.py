"""Word problems in several steps, with a calculator."""
