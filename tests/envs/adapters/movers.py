"""Opponents that tests name by import string."""


def first_free(heard, rng):
    """Take the first cell that is offered."""
    return "[" + heard.split("Available Moves: '[")[-1][0] + "]"


def number(heard, rng):
    """Return what is no text."""
    return 7
