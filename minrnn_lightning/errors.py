"""``InputError``: what the caller gave is at fault, not the program; and what can be told from a library's error."""

from collections.abc import Iterator
from opcode import opmap
from types import TracebackType


class InputError(ValueError):
    """A value, file or option that the caller gave cannot be used; the message says why and what is accepted.

    The ``minrnn`` command prints the message of this error alone. Any other exception is a mistake of the program and
    keeps its traceback.
    """


def missing_package(package: str, extra: str) -> InputError:
    """The error for an optional package that is not installed.

    Args:
        package: Its name.
        extra: The extra of this package that installs it.
    """
    return InputError(f'this needs the package {package}: pip install "minrnn-lightning[{extra}]"')


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def raised_by(error: BaseException, package: str) -> bool:
    """Whether a ``raise`` statement of a package is where an error comes from: the package refuses its arguments.

    An operation that fails there, such as ``int("x")`` or a missing key, is a mistake of the program instead.

    Args:
        error: A caught exception.
        package: Name of the package, or of a module in it.
    """
    *_, innermost = _calls(error)
    code = innermost.tb_frame.f_code.co_code
    return f"{_module(innermost)}.".startswith(f"{package}.") and code[innermost.tb_lasti] == opmap["RAISE_VARARGS"]


def modules_passed(error: BaseException) -> list[str]:
    """The modules of the functions that an error has passed, from the one that caught it to the innermost.

    Args:
        error: A caught exception.
    """
    return [_module(call) for call in _calls(error)]


def packages_passed(error: BaseException) -> list[str]:
    """The packages of the functions that an error has passed, from the one that caught it to the innermost.

    Args:
        error: A caught exception.
    """
    return [module.partition(".")[0] for module in modules_passed(error)]


def _calls(error: BaseException) -> Iterator[TracebackType]:
    call = error.__traceback__
    while call is not None:
        yield call
        call = call.tb_next


def _module(call: TracebackType) -> str:
    return str(call.tb_frame.f_globals.get("__name__", ""))
