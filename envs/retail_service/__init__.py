"""RetailService: serve a shop's customer within policy, by tools over its database."""
