"""Find a five-letter word from hints per letter."""
