"""A step of layers or of a backbone on a CPU as one call of a compiled kernel, where only its result is asked for.

The kernels have layers and blocks of minGRU and minLSTM in float32, without gradients, for small batches. The functions
here look at every module and tensor again in each step, and return None for all that the kernels do not have or that
something else wants to see: other layers and types, hooks, tensors of other classes, autocast, derivatives, tracing,
compiling. What ``fused_blocks`` has seen is kept as a ``_Plan``: to ask whether all is as before takes less time than
to look, and within ``unchanged_modules`` nothing is asked.
"""

from collections.abc import Callable
from contextvars import ContextVar, Token
from operator import attrgetter, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.fused import is_observed
from minrnn_lightning.nn.mixers.gated import Logits
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.state import State
from minrnn_lightning.ops.kernel_choice import runs_numba

# Of a batch, for each thread: with more rows, or rows × width, the operators of PyTorch are about as fast.
MOST_ROWS, MOST_NUMBERS = 32, 8192
EPS = 1e-5  # of the norms that the kernel computes
CLASSES = {Tensor, nn.Parameter}

KINDS = {None: 0, True: 1, False: 2}  # by ``normalize``, which minGRU has not: those of ``step_kernels``


class NotCovered(Exception):  # noqa: N818 - no error: the step runs otherwise
    """The kernel lacks something of a step."""


def fused_layers(
    layers: nn.Module,
    sizes: tuple[int, int, int],
    blocks: int,
    options: dict[str, Any],
    x_t: Tensor,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Run one step of layers stacked on each other, without dropout.

    Args:
        layers: The module with the weights and biases.
        sizes: Features of the input, number of layers, and features of the state.
        blocks: Logits for each unit.
        options: Those of the step function.
        x_t: (batch, features).
        state: (layers, batch, hidden).
        reset: Bool (batch,), where the state is zeros; or None.

    Returns:
        The output and the new state, or None where the kernel lacks something.
    """
    if not _can_run(x_t):
        return None
    (features, count, hidden), batch, threads = sizes, x_t.shape[0], torch.get_num_threads()
    if not 0 < batch <= most_rows(hidden) * threads:
        return None
    from minrnn_lightning.ops.cpu import step

    x_t, state, after = x_t.contiguous(), state.contiguous(), torch.empty(count, batch, hidden)
    kept: list[Tensor] = []
    kind = KINDS[options.get("normalize")]
    try:
        fields = [_reset(reset, batch, kept), _address(x_t, (batch, features)), count, features, hidden, kind]
        fields += options["activation"] == "identity", options["signed"]
        fields += _address(state, (count, batch, hidden)), after.data_ptr()
        for layer in range(count):
            weight, bias = (layers._parameters.get(f"{name}_ih_l{layer}") for name in ("weight", "bias"))
            fields += _address(weight, (blocks * hidden, features)), _address(bias, (blocks * hidden,))
            features = hidden
    except NotCovered:
        return None
    step.run_layers(batch, fields, threads)
    return after[-1].clone(), after


def most_rows(width: int) -> int:
    """The most rows of a batch for which a thread runs the kernel."""
    return max(MOST_ROWS, MOST_NUMBERS // width)


def _can_run(x_t: Tensor) -> bool:
    """Whether nothing but the result of a step is asked for, and kernels run where its input is."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_observed() or torch.is_autocast_enabled("cpu"):
        return False
    return type(x_t) in CLASSES and x_t.dim() == 2 and runs_numba(x_t.device)


def fused_blocks(
    blocks: Any, kind: type[nn.Module], norm: nn.Module, x_t: Tensor, state: State, reset: Tensor | None
) -> tuple[Tensor, State] | None:
    """Run ``Backbone.step``.

    Args:
        blocks: The ``nn.ModuleList`` of those of the backbone.
        kind: The class of the blocks that the kernel computes.
        norm: The norm after the last block.
        x_t: (batch, dim).
        state: The state of the backbone.
        reset: Bool (batch,), or None.

    Returns:
        What ``Backbone.step`` does, or None where the kernel lacks something.
    """
    if not _can_run(x_t):
        return None
    from minrnn_lightning.ops.cpu import step

    (batch, dim), threads = x_t.shape, torch.get_num_threads()
    if not 0 < batch <= most_rows(dim) * threads or not isinstance(state, list) or len(state) != len(blocks):
        return None
    promise = _promise.get()
    try:
        plan = None if promise is None else promise.plans.get(blocks)
        if plan is None:
            plan = _plans.get(blocks)
            if plan is None or not plan.holds(blocks, norm):
                plan = _plans[blocks] = _Plan(blocks, kind, norm, dim)
            if promise is not None:
                promise.keep(blocks, plan)
        if dim != plan.dim or (reset is not None and plan.learns_start):
            return None
        y, x_t = torch.empty(batch, dim), x_t.contiguous()
        fields, kept, after = plan.fields.copy(), [x_t], []  # kept: what has an address must live as long as the call
        fields[0], fields[1], fields[4] = _reset(reset, batch, kept), _address(x_t, (batch, dim)), y.data_ptr()
        for places, before in zip(plan.states, state, strict=True):
            after.append(tuple(_state(*each, batch, fields, kept) for each in zip(before, places, strict=True)))
    except NotCovered:
        return None
    step.run_blocks(batch, fields, threads)
    return y, after


class _Plan:
    """What the kernel reads of a backbone in every step, and whether that is still so.

    Raises:
        NotCovered: The kernel lacks something.
    """

    def __init__(self, blocks: nn.ModuleList, kind: type[nn.Module], norm: nn.Module, dim: int) -> None:
        self.dim, self.norm, self.depth = dim, norm, len(blocks)
        self.fields = [0, 0, dim, self.depth, 0]  # in the order of ``step_kernels``; 0: of resets, input and output
        # Of the states of each block, their numbers of features, and at which fields their addresses are.
        self.states: list[list[tuple[tuple[int, ...], int]]] = []
        self.learns_start = False
        self._entries: list[tuple[dict[str, Any], str, Any]] = []  # of the dictionaries in which modules keep all
        self._modules: list[nn.Module] = []
        self._hooks: list[Any] = []
        self.weights: list[Tensor] = []
        self._add_norm(norm)
        for name in map(str, range(self.depth)):
            self._add_block(self._entry(blocks._modules, name), kind)
        self._dicts, self._keys, self._values = zip(*self._entries, strict=True)
        self._about_modules = list(map(type, self._modules))
        self._about_weights = [list(map(about, self.weights)) for about in ABOUT_WEIGHTS]

    def holds(self, blocks: nn.ModuleList, norm: nn.Module) -> bool:
        """Whether no module, weight or option is another one than when the plan was made."""
        return (
            norm is self.norm
            and len(blocks) == self.depth
            and all(map(is_, map(dict.get, self._dicts, self._keys), self._values))
            and not any(self._hooks)
            and list(map(type, self._modules)) == self._about_modules
            and all(
                list(map(about, self.weights)) == before
                for about, before in zip(ABOUT_WEIGHTS, self._about_weights, strict=True)
            )
        )

    def _add_block(self, block: Any, kind: type[nn.Module]) -> None:
        if type(block) is not kind:
            raise NotCovered
        self._modules.append(block)
        dropout, mixer = self._child(block, "dropout"), self._child(block, "mixer")
        training, p = self._options(dropout, "training", "p")
        if type(dropout) is not Dropout or (training and p > 0) or type(mixer) not in (MinGRUMixer, MinLSTMMixer):
            raise NotCovered
        self._modules += dropout, mixer
        self.states.append([])
        self._add_norm(self._child(block, "mixer_norm"))
        self._add_convolution(self._child(block, "conv"))
        hidden = self._add_recurrence(mixer)
        self._add_state(hidden)
        self._add_linear(self._child(mixer, "out"), hidden, self.dim)
        mlp = self._child(block, "mlp")
        if mlp is None:
            self.fields += NO_MLP
            return
        up, gelu, down = (self._entry(self._module(mlp, nn.Sequential)._modules, name) for name in "012")
        if len(mlp) != 3 or self._options(self._module(gelu, nn.GELU), "approximate") != ["none"]:
            raise NotCovered
        (units,) = self._options(up, "out_features")
        self.fields.append(units)
        self._add_norm(self._child(block, "mlp_norm"))
        if self._child(block, "mlp_conv") is None:
            self.fields += NO_CONVOLUTION
        else:
            self._add_convolution(self._child(block, "mlp_conv"))
        self._add_linear(up, self.dim, units)
        self._add_linear(down, units, self.dim)

    def _add_convolution(self, conv: Any) -> None:
        if conv is None:
            self.states[-1].append(((), 0))
            self.fields += NO_CONVOLUTION
            return
        (size,) = self._options(self._module(conv, CausalConv), "kernel_size")
        self.fields.append(size)
        self._add_weight(conv, "weight", size, self.dim)
        self._add_weight(conv, "bias", self.dim)
        self._add_state(size - 1, self.dim)

    def _add_recurrence(self, mixer: Any) -> int:
        """Add the options of a mixer, and its logits' weight and bias; its number of hidden units."""
        hidden, bidirectional, highway, options = self._options(mixer, "hidden", "bidirectional", "highway", "options")
        activation, signed, normalize = (self._entry(options, name) for name in ("activation", "signed", "normalize"))
        if bidirectional or highway:
            raise NotCovered
        logits = self._module(self._child(mixer, "rnn"), Logits)
        self.learns_start |= self._entry(logits._parameters, "initial") is not None
        self.fields += hidden, KINDS[normalize], activation == "identity", signed
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
        self.fields.append(_address(weight, shape))
        self.weights.append(weight)

    def _add_state(self, *shape: int) -> None:
        """Add the places of a state's address and of that of the next step."""
        self.states[-1].append((shape, len(self.fields)))
        self.fields += 0, 0

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
        if self._entry(module.__dict__, name) is not None:
            raise NotCovered
        return self._entry(module._modules, name)

    def _options(self, module: Any, *names: str) -> list[Any]:
        return [self._entry(module.__dict__, name) for name in names]

    def _entry(self, entries: dict[str, Any], name: str) -> Any:
        """What a dictionary has for a name, or None; ``holds`` looks there again."""
        self._entries.append((entries, name, entries.get(name)))
        return self._entries[-1][2]


class unchanged_modules:  # noqa: N801 - used like a function
    """Steps in this context look at the modules of a backbone once, and not again in every step.

    At batches of a few rows that is much of the time of a step. Values of weights may change in place, as by an
    optimizer; of a module, weight, option or hook that is replaced, steps may go on to use the one before. An instance
    may be entered again and again, and keeps what it has seen::

        with unchanged_modules():
            for x_t in stream:
                y_t, state = backbone.step(x_t, state)
    """

    def __init__(self) -> None:
        self.plans: dict[Any, _Plan] = {}
        self._memory: list[Tensor] = []
        self._tokens: list[Token[unchanged_modules | None]] = []

    def keep(self, blocks: Any, plan: _Plan) -> None:
        """Let the steps of a backbone follow a plan, whose addresses stay valid."""
        self.plans[blocks] = plan
        self._memory += map(Tensor.detach, plan.weights)

    def __enter__(self) -> None:
        self._tokens.append(_promise.set(self))

    def __exit__(self, *_: object) -> None:
        _promise.reset(self._tokens.pop())


_promise: ContextVar[unchanged_modules | None] = ContextVar("unchanged modules", default=None)


_plans: WeakKeyDictionary[nn.ModuleList, _Plan] = WeakKeyDictionary()
NO_CONVOLUTION = (0,) * 5  # in place of its fields
NO_MLP = (0, 0, 0, *NO_CONVOLUTION, 0, 0, 0, 0)
# Of weights: an assignment to ``data`` can change them, and that of a tensor to another name changes all but one.
ABOUT_WEIGHTS: tuple[Callable[[Any], Any], ...] = (
    type,
    Tensor.data_ptr,
    attrgetter("dtype"),
    Tensor.is_contiguous,
    Tensor.numel,
)


def _state(before: Any, place: tuple[tuple[int, ...], int], batch: int, fields: list[int], kept: list[Tensor]) -> State:
    """Add the addresses of a state of a block, and of the one of the next step that the kernel will write."""
    shape, field = place
    if not field:
        return ()
    before, after = before.contiguous(), torch.empty(batch, *shape)
    fields[field : field + 2] = _address(before, (batch, *shape)), after.data_ptr()
    kept.append(before)
    return after


def _address(tensor: Any, shape: tuple[int, ...]) -> int:
    """Where a contiguous float32 tensor of a shape begins."""
    if (
        type(tensor) not in CLASSES
        or tensor.dtype is not torch.float32
        or tensor.shape != shape
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or not tensor.is_contiguous()
    ):
        raise NotCovered
    address: int = tensor.data_ptr()
    return address


def _reset(reset: Tensor | None, batch: int, kept: list[Tensor]) -> int:
    """Where the resets begin; 0 if there are none."""
    if reset is None:
        return 0
    if type(reset) not in CLASSES or reset.dtype is not torch.bool or reset.shape != (batch,) or not reset.is_cpu:
        raise NotCovered
    kept.append(reset.contiguous())
    return kept[-1].data_ptr()
