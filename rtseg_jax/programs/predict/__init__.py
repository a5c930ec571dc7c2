"""The program `rtseg predict`."""
