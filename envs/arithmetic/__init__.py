"""Arithmetic: one expression of whole numbers."""
