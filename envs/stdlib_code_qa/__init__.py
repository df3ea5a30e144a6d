"""Questions about the source of the standard library, answered by searching and reading it."""
