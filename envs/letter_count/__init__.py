"""LetterCount: how often letters occur."""
