"""The program `rtseg evaluate`."""
