"""RegexGolf: a short pattern that parts two lists of words."""
