"""Clarify: fill in an order form after asking for what the customer left out."""
