"""Supported versions of Triton and the error of a compiler, which can be imported without Triton."""

TRITON = ("3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9")  # compile the kernels; newer ones are tried
TRITON_RANGE = f"{TRITON[0]} to {TRITON[-1]}"


class CompilerError(RuntimeError):
    """The compiler failed on a kernel, before any of it ran."""
