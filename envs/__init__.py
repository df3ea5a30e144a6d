"""Task environments, one folder per family, each with an oracle and a random policy."""
