"""A trained network as one object, and what it scores."""
