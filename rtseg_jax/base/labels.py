"""Values of a label that are no class."""

IGNORE = 255
OUTSIDE = 253  # on a canvas: beyond the frame, see data.spec.on_canvas
