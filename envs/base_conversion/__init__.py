"""BaseConversion: the same number in another base."""
