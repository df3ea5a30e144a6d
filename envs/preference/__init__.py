"""Preference: find out what somebody likes by asking, then recommend the best item."""
