"""Questions that are answered by a SQL query over a seeded sqlite database."""
