"""LinearEquation: whole-number solutions of linear equations."""
