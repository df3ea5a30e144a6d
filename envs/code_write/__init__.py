"""Functions over lists of numbers, written from a description and graded by hidden tests."""
