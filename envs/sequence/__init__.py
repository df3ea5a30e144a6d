"""Sequence: the next numbers of a sequence."""
