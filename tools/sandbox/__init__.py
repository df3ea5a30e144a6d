"""Isolated execution of code that a model wrote: one protocol, several back ends, the strongest that works is used."""
