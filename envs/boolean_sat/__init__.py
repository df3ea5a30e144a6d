"""BooleanSat: the one assignment that makes a formula true."""
