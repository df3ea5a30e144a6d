"""Countdown: reach a number with the given ones."""
