"""Tool implementations that environments share."""
