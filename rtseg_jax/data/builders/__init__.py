"""Builders for TensorFlow Datasets; nothing in the package imports them."""
