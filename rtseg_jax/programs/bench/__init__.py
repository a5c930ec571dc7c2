"""The program `rtseg bench`."""
