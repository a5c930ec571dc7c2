"""What a person runs: a program is flags and one call."""
