"""Questions that lead over several articles of an invented encyclopaedia."""
