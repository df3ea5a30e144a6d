"""A written policy, and requests of which some are permitted and some are not."""
