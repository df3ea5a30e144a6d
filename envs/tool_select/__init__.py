"""One request, and fifty or more tools of which one is right."""
