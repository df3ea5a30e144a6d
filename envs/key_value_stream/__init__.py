"""KeyValueStream: remember values that keep changing."""
