"""The scan on GPUs: Triton kernels, and how the length is divided among them."""
