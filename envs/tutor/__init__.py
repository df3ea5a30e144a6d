"""Tutor: find and cure the misconceptions of a simulated learner, then let it take a quiz."""
