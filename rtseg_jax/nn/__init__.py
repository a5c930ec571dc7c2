"""Operations that match PyTorch's and are fast on every device: NHWC, parameters in standard shapes.

Every operation takes `impl`: "auto" picks the fastest formulation for the platform, "portable" is the plain
lax form that exporters understand and tests compare with; `form.portable()` chooses it for a whole network.
"""
