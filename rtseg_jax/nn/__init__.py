"""Operations that match PyTorch's and are fast on every device: NHWC, parameters in standard shapes.

conv.py, norm.py, pool.py, resize.py and attention.py say what is computed; cpu.py and gpu.py have the forms in which each
platform is fast, and forms.py how a platform gets its own.
"""
