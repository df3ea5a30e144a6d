"""Train language-model agents in Gymnasium environments."""

__version__ = "0.1.0"
