"""Share items that are worth different things to two sides."""
