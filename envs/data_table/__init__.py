"""Questions about a table, answered by filtering, grouping and aggregating with tools."""
