"""Four in a row, with marks that fall."""
