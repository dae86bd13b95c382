"""What `bench/gpu.py` does with a card: it needs the library of kernels, NumPy and, for times, PyTorch, and no more."""
