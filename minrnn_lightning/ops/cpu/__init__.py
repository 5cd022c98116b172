"""The scan on CPUs: kernels compiled by Numba, run on PyTorch's OpenMP threads."""
