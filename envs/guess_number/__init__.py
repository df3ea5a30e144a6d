"""Find a hidden number; the tool's reply carries the remaining range."""
