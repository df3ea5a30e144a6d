"""SortWords: bring words into order."""
