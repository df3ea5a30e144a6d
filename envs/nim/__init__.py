"""Take the last stone from a few heaps."""
