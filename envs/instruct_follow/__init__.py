"""InstructFollow: a text that keeps several rules."""
