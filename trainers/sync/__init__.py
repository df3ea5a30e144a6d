"""Ways of handing weights from the trainer to engines."""
