"""What the kernel of a step reads of a backbone, kept from step to step.

To ask whether all modules and weights are as before takes less time than to look at them, and within
``unchanged_modules`` only the addresses of the weights are asked.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import chain, compress, repeat
from operator import attrgetter, eq, is_, itemgetter, mul
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.mixers.gated import Logits
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.state import State

EPS = 1e-5  # of the norms that the kernel computes
CLASSES = {Tensor, nn.Parameter}
INPUT, OUTPUT = 5, 8  # fields of a call: ``step_kernels.X`` and ``Y``, which cannot be imported without Numba
NO_CONVOLUTION = (0,) * 5  # in place of its fields
NO_MLP = (0, 0, 0, *NO_CONVOLUTION, 0, 0, 0, 0)
# Called by ``map``, which takes half of the time of a loop.
_shape, _dtype, _layout, _is_cpu = map(attrgetter, ("shape", "dtype", "layout", "is_cpu"))
# What is compared besides the addresses.
ABOUT_WEIGHTS: tuple[Callable[[Any], Any], ...] = (type, attrgetter("nbytes"), Tensor.is_contiguous)


class NotCovered(Exception):  # noqa: N818 - no error: the step runs otherwise
    """The kernel lacks something of a step."""


class Plan:
    """What the kernel reads of a backbone in every step, and whether that is still so.

    Raises:
        NotCovered: The kernel lacks something.
    """

    def __init__(self, blocks: nn.ModuleList, kind: type[nn.Module], norm: nn.Module, dim: int) -> None:
        if any(type(each) is not kind or type(each.mixer) not in (MinGRUMixer, MinLSTMMixer) for each in blocks):
            raise NotCovered
        self.dim, self.norm, self.depth = dim, norm, len(blocks)
        self._fields = [0] * 6 + [dim, self.depth, 0]  # in the order of ``step_kernels``; 0: what differs between steps
        # Of the input and of the states of all blocks: sizes without the batch, and the fields of the addresses before
        # and after the step.
        self.shapes: list[tuple[int, ...]] = [(dim,)]
        self.fields_before, self.fields_after = [INPUT], [OUTPUT]
        self._places: list[list[int]] = []  # of the states of each block among these, -1 for one that is ()
        self.learns_start = False
        self._entries: list[tuple[dict[str, Any], str, Any]] = []  # of the dictionaries in which modules keep all
        self._modules: list[nn.Module] = []
        self._hooks: list[Any] = []
        self.weights: list[Tensor] = []
        self._add_norm(norm)
        for name in map(str, range(self.depth)):
            self._add_block(self._entry(blocks._modules, name))
        self._dicts, self._keys, self._values = zip(*self._entries, strict=True)
        self._about_modules = list(map(type, self._modules))
        self._about_weights = [list(map(about, self.weights)) for about in ABOUT_WEIGHTS]
        self._addresses = list(map(Tensor.data_ptr, self.weights))
        # One block of memory, which a step copies without looking at the numbers one by one.
        self._call_type = ctypes.c_int64 * len(self._fields)
        self._call = bytes(self._call_type(*self._fields))
        self._lengths = list(map(len, self._places))
        self._getters = [itemgetter(*places) for places in self._places]
        self._is_state = [place >= 0 for place in chain.from_iterable(self._places)]

    def new_call(self) -> "ctypes.Array[Any]":
        """A call of the kernel that lacks only what differs between steps."""
        return self._call_type.from_buffer_copy(self._call)

    def tensors(self, state: State) -> list[Any]:
        """All tensors of a backbone's state, block by block."""
        if not isinstance(state, list) or list(map(len, state)) != self._lengths:
            raise NotCovered
        return list(compress(chain.from_iterable(state), self._is_state))

    def state(self, tensors: list[Any]) -> State:
        """The state of a backbone, of an output and the tensors after a step."""
        tensors = [*tensors, ()]  # at place -1
        return [getter(tensors) for getter in self._getters]

    def __deepcopy__(self, _: object) -> None:
        """Nothing: the addresses are those of this model. A pickle has none either."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def is_in_place(self) -> bool:
        """Whether the memory of all weights is where it was."""
        return list(map(Tensor.data_ptr, self.weights)) == self._addresses

    def holds(self, blocks: nn.ModuleList, norm: nn.Module) -> bool:
        """Whether no module, weight or option is another one than when the plan was made."""
        return (
            norm is self.norm
            and len(blocks) == self.depth
            and all(map(is_, map(dict.get, self._dicts, self._keys), self._values))
            and not any(self._hooks)
            and list(map(type, self._modules)) == self._about_modules
            and self.is_in_place()
            and all(
                list(map(about, self.weights)) == before
                for about, before in zip(ABOUT_WEIGHTS, self._about_weights, strict=True)
            )
        )

    def _add_block(self, block: Any) -> None:
        mixer = self._child(block, "mixer")
        self._modules += block, mixer
        training, p = self._options(self._module(self._child(block, "dropout"), Dropout), "training", "p")
        if (training and p > 0) or any(self._options(block, "step") + self._options(mixer, "step", "mix_step")):
            raise NotCovered
        self._places.append([])
        self._add_norm(self._child(block, "mixer_norm"))
        if not self._add_convolution(self._child(block, "conv")):
            self._places[-1].append(-1)
        hidden = self._add_recurrence(mixer)
        self._add_state(hidden)
        self._add_linear(self._child(mixer, "out"), hidden, self.dim)
        mlp = self._child(block, "mlp")
        if mlp is None:
            self._fields += NO_MLP
            return
        up, gelu, down = (self._entry(self._module(mlp, nn.Sequential)._modules, name) for name in "012")
        more = self._entry(mlp._modules, "3")
        (units,) = self._options(up, "out_features")
        if more is not None or not units or self._options(self._module(gelu, nn.GELU), "approximate") != ["none"]:
            raise NotCovered
        self._fields.append(units)
        self._add_norm(self._child(block, "mlp_norm"))
        self._add_convolution(self._child(block, "mlp_conv"))
        self._add_linear(up, self.dim, units)
        self._add_linear(down, units, self.dim)

    def _add_convolution(self, conv: Any) -> bool:
        """Add a convolution with its state, or the lack of both; whether there is one."""
        if conv is None:
            self._fields += NO_CONVOLUTION
            return False
        (size,) = self._options(self._module(conv, CausalConv), "kernel_size")
        self._fields.append(size)
        self._add_weight(conv, "weight", size, self.dim)
        self._add_weight(conv, "bias", self.dim)
        self._add_state(size - 1, self.dim)
        return True

    def _add_recurrence(self, mixer: Any) -> int:
        """Add the options of a mixer, and its logits' weight and bias; its number of hidden units."""
        hidden, bidirectional, highway, options = self._options(mixer, "hidden", "bidirectional", "highway", "options")
        activation, signed, normalize = (self._entry(options, name) for name in ("activation", "signed", "normalize"))
        if bidirectional or highway:
            raise NotCovered
        logits = self._module(self._child(mixer, "rnn"), Logits)
        self.learns_start |= self._entry(logits._parameters, "initial") is not None
        self._fields += hidden, kind_of(mixer.blocks, normalize), activation == "identity", bool(signed)
        self._add_weight(logits, "weight_ih_l0", mixer.blocks * hidden, self.dim)
        self._add_weight(logits, "bias_ih_l0", mixer.blocks * hidden)
        return int(hidden)

    def _add_norm(self, norm: Any) -> None:
        eps, shape = self._options(self._module(norm, nn.LayerNorm), "eps", "normalized_shape")
        if eps != EPS or shape != (self.dim,):
            raise NotCovered
        self._add_weight(norm, "weight", self.dim)
        self._add_weight(norm, "bias", self.dim)

    def _add_linear(self, linear: Any, features: int, units: int) -> None:
        self._add_weight(self._module(linear, nn.Linear), "weight", units, features)
        self._add_weight(linear, "bias", units)

    def _add_weight(self, module: nn.Module, name: str, *shape: int) -> None:
        weight = self._entry(module._parameters, name)
        at = addresses([weight], [shape])
        check_allocated([weight], at)
        self._fields += at
        self.weights.append(weight)

    def _add_state(self, *shape: int) -> None:
        """Add the places of a state's address and of that of the next step."""
        self._places[-1].append(len(self.shapes))
        self.shapes.append(shape)
        self.fields_before.append(len(self._fields))
        self.fields_after.append(len(self._fields) + 1)
        self._fields += 0, 0

    def _module(self, module: Any, kind: type[nn.Module]) -> Any:
        """The module, if its class is ``kind`` and nothing is attached to its call."""
        if type(module) is not kind:
            raise NotCovered
        hooks = [module._forward_hooks, module._forward_pre_hooks]
        if any(hooks) or self._entry(module.__dict__, "forward") is not None:
            raise NotCovered
        self._modules.append(module)
        self._hooks += hooks
        return module

    def _child(self, module: nn.Module, name: str) -> Any:
        """A module within another one, or None where it is left out."""
        return self._entry(module._modules, name)

    def _options(self, module: Any, *names: str) -> list[Any]:
        return [self._entry(module.__dict__, name) for name in names]

    def _entry(self, entries: dict[str, Any], name: str) -> Any:
        """What a dictionary has for a name, or None; ``holds`` looks there again."""
        self._entries.append((entries, name, entries.get(name)))
        return self._entries[-1][2]


class unchanged_modules:  # noqa: N801 - used like a function
    """Steps in this context look at the modules of a backbone once, and then only whether its weights have moved.

    At batches of a few rows that is much of the time of a step on a CPU. Values of weights may change, as by an
    optimizer. A module, option or hook that is replaced may go unnoticed. An instance may be entered again and again,
    and remembers what it has seen::

        with torch.no_grad(), unchanged_modules():
            for x_t in stream:
                y_t, state = backbone.step(x_t, state)
    """

    def __init__(self) -> None:
        self.plans: dict[Any, Plan | None] = {}  # by the blocks of a backbone; None where the kernel lacks something

    def __enter__(self) -> None:
        _entered.set((*_entered.get(), self))

    def __exit__(self, *_: object) -> None:
        # Wherever it is: generators that are closed in another order than they were begun share a context.
        entered = list(_entered.get())
        if self in entered:
            del entered[len(entered) - 1 - entered[::-1].index(self)]
            _entered.set(tuple(entered))


_entered: ContextVar[tuple[unchanged_modules, ...]] = ContextVar("unchanged modules", default=())


def find_plan(blocks: Any, kind: type[nn.Module], norm: nn.Module, dim: int) -> Plan:
    """The plan of a backbone, an earlier one where that still holds.

    Args:
        blocks: The ``nn.ModuleList`` of those of the backbone, which keeps the plan.
        kind: The class of the blocks that the kernel computes.
        norm: The norm after the last block.
        dim: The width.

    Raises:
        NotCovered: The kernel lacks something.
    """
    entered = _entered.get()
    if not entered:
        return _find_plan(blocks, kind, norm, dim)
    plans = entered[-1].plans
    if blocks in plans:
        plan = plans[blocks]
        if plan is None:
            raise NotCovered
        if plan.norm is norm and plan.is_in_place():
            return plan
    plans[blocks] = None
    plans[blocks] = plan = _find_plan(blocks, kind, norm, dim)
    return plan


def _find_plan(blocks: Any, kind: type[nn.Module], norm: nn.Module, dim: int) -> Plan:
    about = blocks.__dict__
    plan: Plan | None = about.get("_plan")
    if plan is None or not plan.holds(blocks, norm):
        about["_plan"] = None  # so that replaced weights are freed where the kernel lacks something
        plan = about["_plan"] = Plan(blocks, kind, norm, dim)
    return plan


def kind_of(blocks: int, normalize: object) -> int:
    """The recurrence as ``step_kernels`` numbers them, of a layer with so many logits for each unit."""
    return 0 if blocks == 2 else 1 if normalize else 2


def addresses(tensors: Sequence[Any], shapes: list[tuple[int, ...]]) -> list[int]:
    """Where contiguous float32 tensors of some shapes begin.

    Raises:
        NotCovered: They are something else.
    """
    if not (
        CLASSES.issuperset(map(type, tensors))
        and list(map(_shape, tensors)) == shapes
        and {torch.float32}.issuperset(map(_dtype, tensors))
        and all(map(_is_cpu, tensors))
        and {torch.strided}.issuperset(map(_layout, tensors))
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_neg, tensors))
    ):
        raise NotCovered
    return list(map(Tensor.data_ptr, tensors))


def check_allocated(weights: Sequence[Tensor], at: Sequence[int]) -> None:
    """Refuse weights whose memory FSDP has freed, of which only the offset is left as an address.

    Raises:
        NotCovered: There is one.
    """
    if any(map(eq, at, map(mul, repeat(4), map(Tensor.storage_offset, weights)))):
        raise NotCovered
