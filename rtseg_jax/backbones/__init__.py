"""Trunks that return their features keyed by output stride."""
