"""Three in a row on a board of nine squares."""
