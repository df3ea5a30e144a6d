"""ChartRead: read values off a bar chart."""
