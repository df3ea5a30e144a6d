"""Poker with three cards, with the luck of the deal taken out."""
