"""Mixers by name, by class, or by the path of a class."""

from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, signature
from types import UnionType
from typing import Any

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers.attention import AttentionMixer
from minrnn_lightning.nn.mixers.base import Mixer
from minrnn_lightning.nn.mixers.deltanet import DeltaNetMixer
from minrnn_lightning.nn.mixers.gated_mingru import GatedMinGRUMixer
from minrnn_lightning.nn.mixers.gru import GRUMixer
from minrnn_lightning.nn.mixers.lstm import LSTMMixer
from minrnn_lightning.nn.mixers.mamba import MambaMixer
from minrnn_lightning.nn.mixers.matrix_mingru import MatrixMinGRUMixer
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.mixers.s4d import S4DMixer

MIXERS: dict[str, type[Mixer]] = {
    "attention": AttentionMixer,
    "deltanet": DeltaNetMixer,
    "gated_mingru": GatedMinGRUMixer,
    "gru": GRUMixer,
    "lstm": LSTMMixer,
    "mamba": MambaMixer,
    "matrix_mingru": MatrixMinGRUMixer,
    "mingru": MinGRUMixer,
    "minlstm": MinLSTMMixer,
    "s4d": S4DMixer,
}


def mixer_name(mixer: str | type[Mixer]) -> str:
    """The name of a mixer in ``mixer_args`` and in hyper-parameters.

    Args:
        mixer: A string, which is the name, or a class, whose name is that in ``MIXERS`` or else its path.
    """
    if isinstance(mixer, str):
        return mixer
    cls = find_mixer(mixer)
    known = {found: name for name, found in MIXERS.items()}
    return known.get(cls, f"{cls.__module__}.{cls.__qualname__}")


def find_mixer(mixer: object) -> type[Mixer]:
    """The class of a mixer.

    Args:
        mixer: A name in ``MIXERS``, the path of a class such as ``my_package.MyMixer``, or the class itself.

    Raises:
        InputError: There is none, or it is no subclass of ``Mixer``.
    """
    found: object = mixer
    if isinstance(mixer, str):
        if mixer in MIXERS:
            return MIXERS[mixer]
        found = _import(mixer)
    if not (isinstance(found, type) and issubclass(found, Mixer)):
        what = "is not a subclass of" if isinstance(mixer, str | type) else "is neither a name nor a subclass of"
        raise InputError(f"mixer {mixer!r} {what} minrnn_lightning.nn.mixers.Mixer")
    return found


def build_mixer(
    cls: type[Mixer], dim: int, expansion: float, *, layer_index: int, depth: int, args: Mapping[str, Any]
) -> Mixer:
    """A mixer of width ``dim``, with its own ``args`` and those of the other arguments that its constructor has."""
    parameters = signature(cls).parameters
    offered = {"expansion": expansion, "layer_index": layer_index, "depth": depth}
    return cls(dim, **{name: value for name, value in offered.items() if name in parameters} | dict(args))


def check_mixer_args(name: str, cls: type[Mixer], given: Mapping[str, Any]) -> None:
    """Refuse arguments that a mixer does not have, and values of another type than its annotations say.

    Raises:
        InputError: There is such an argument, or they are no dictionary.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"mixer_args: the arguments of {name} must be a dictionary, got {given!r}")
    parameters = list(signature(cls, eval_str=True).parameters.values())[1:]  # without dim
    known = {p.name: p for p in parameters if p.name not in ("layer_index", "depth") and p.kind is not p.VAR_KEYWORD}
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        given = {key: value for key, value in given.items() if key in known}
    if unknown := set(given).difference(known):
        raise InputError(f"mixer_args: {name} has no {', '.join(sorted(map(str, unknown)))}; it has {', '.join(known)}")
    for key, value in given.items():
        expected = known[key].annotation
        if not isinstance(expected, type | UnionType) or expected is Parameter.empty:
            continue
        if not isinstance(value, int | float if expected is float else expected):
            text = str(expected).replace("None", "null") if isinstance(expected, UnionType) else expected.__name__
            raise InputError(f"mixer_args: {key} of {name} must be {text}, got {value!r}")


def _import(path: str) -> object:
    """What a dotted path names."""
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        names = ", ".join(sorted(MIXERS))
        raise InputError(f"mixer {path!r} is unknown; it can be {names}, or the path of a class: my_package.MyMixer")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):  # it is there, and imports something that is not
            raise
        raise InputError(
            f"mixer {path!r} cannot be imported: there is no module {error.name}; install it, or add its folder to "
            "PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"mixer {path!r} cannot be imported: {module_name} has no {name}")
    return getattr(module, name)
