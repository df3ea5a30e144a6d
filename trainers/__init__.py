"""Turns recorded episodes into weight updates."""
