"""Seeded people, companies and calendars, and what environments about work and service share."""
