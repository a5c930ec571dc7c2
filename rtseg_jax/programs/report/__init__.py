"""The program `rtseg report`."""
