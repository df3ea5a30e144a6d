"""Environments of other packages as environments of this one; see docs/adapters.md."""
