"""LongNeedle: follow a trail through a long text."""
