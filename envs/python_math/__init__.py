"""Number problems that want a computer, solved with a persistent Python interpreter in a sandbox."""
