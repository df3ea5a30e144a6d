"""A web API without documentation, which must be discovered to do a job with it."""
