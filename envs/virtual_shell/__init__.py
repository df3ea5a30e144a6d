"""Jobs on a file system in memory, done with a small shell of our own."""
