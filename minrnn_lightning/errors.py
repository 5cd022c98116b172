"""``InputError``: what the caller gave is at fault, not the program."""


class InputError(ValueError):
    """A value, file or option that the caller gave cannot be used; the message says why and what is accepted.

    The ``minrnn`` command prints the message of this error alone. Any other exception is a mistake of the program and
    keeps its traceback.
    """
