"""A data set is a file."""
