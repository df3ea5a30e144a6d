"""Reward functions that are ready to use: plain functions of text, rows, states and lengths, and model judges."""
