"""Files that hold weights, and nothing about networks."""
