"""What is known of the compilers behind the kernels before they are loaded."""

TRITON = ("3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9")  # that compile the kernels; newer ones are tried
TRITON_RANGE = f"{TRITON[0]} to {TRITON[-1]}"


class CompilerError(RuntimeError):
    """The compiler fails on a kernel, of which nothing has run yet."""
