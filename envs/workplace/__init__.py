"""Workplace: errands over mail, calendars, documents, contacts and tickets."""
