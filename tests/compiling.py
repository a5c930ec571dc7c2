"""How the suite compiles: a program computes the same however well its code is optimised, and compiling is most of the time."""

FLAGS = "--xla_backend_optimization_level=0"
