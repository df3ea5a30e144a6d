"""Small functions with seeded bugs, which must be found and mended."""
