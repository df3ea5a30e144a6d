"""JsonExtract: facts of a text as JSON."""
