"""How the suite compiles: a program computes the same however well its code is optimised, and compiling is most of the time."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
# Of jaxlib 0.10's two generators of loops the newer one takes twice as long; from 0.11 on it is the only one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
