"""The training loop, in the order of a run, and the parts that only it has."""
