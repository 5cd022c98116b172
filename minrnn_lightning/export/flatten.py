"""The ``FlatModule`` of each kind of model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.export.modules import (
    BATCH,
    LENGTH,
    ClassificationSequence,
    ClassificationStep,
    FlatModule,
    Input,
    OnlinePolicySequence,
    OnlinePolicyStep,
    PolicySequence,
    PolicyStep,
    Sequence,
    Step,
)
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.gru_interface import MinRNN
from minrnn_lightning.nn.mixers import Mixer
from minrnn_lightning.nn.state import State
from minrnn_lightning.tasks import ClassificationTask, PolicyTask, PPOTask, SequenceTask

MODES = ("step", "sequence")
KINDS = "a MinGRU or MinLSTM, a mixer, a Backbone, or a language, tagging, classification or policy task"


def flatten(model: nn.Module, mode: str = "step", *, reset: bool = False) -> FlatModule:
    """Make a model a module with flat tensors in and out, from a copy on the CPU in float32 and evaluation mode.

    Inputs and outputs of ``step``, followed by the state and, where it is asked for, ``reset``, bool (batch,):

    - layer, mixer, backbone: ``input`` (batch, features) to ``output``,
    - language and tagging tasks: ``input``, int64 (batch,), to ``logits``,
    - classification tasks: ``input``, int64 (batch,), to ``logits``, those of the sequence so far,
    - policy tasks: ``observation``, ``previous_action`` and, where the task has them, ``return_to_go`` (batch,) and
      ``timestep``, int64 (batch,), to ``output``, the action, or to ``logits`` of discrete ones. They always have
      ``reset``: True at the first step of an episode, where the previous action has no effect,
    - ``PPOTask``: ``observation`` and, where the task has it, ``previous_action``, likewise; logits of several choices
      are one after the other.

    Those of ``sequence`` have a dimension more, the length, and the names of a policy's are in the plural. A layer has
    its own layout, with ``batch_first`` or without. State and ``reset`` are in the same places as for a step, but
    classification tasks have ``lengths``, int64 (batch,), and neither of the two, a ``PolicyTask`` no state, and models
    that read in both directions, layers excepted, no state either.

    Args:
        model: The model, which remains as it is.
        mode: ``step`` or ``sequence``.
        reset: Whether ``reset`` is added.

    Raises:
        InputError: The mode is unknown or not for this model, or the model is of another kind.
    """
    if mode not in MODES:
        raise InputError(f"mode must be step or sequence, got {mode!r}")
    if not isinstance(model, MinRNN | Mixer | Backbone | SequenceTask | ClassificationTask | PolicyTask | PPOTask):
        raise InputError(f"a {type(model).__name__} cannot be exported; what can is {KINDS}")
    if mode == "step" and _reads_backward(model):
        raise InputError(
            f"a bidirectional {type(model).__name__} has no step, since it reads the whole sequence: "
            "export it with mode sequence"
        )
    model = _copy(model)
    with torch.no_grad():
        if isinstance(model, ClassificationTask):
            return _classification(model, mode, reset)
        if isinstance(model, PolicyTask):
            return _policy(model, mode, reset)
        if isinstance(model, PPOTask):
            return _online_policy(model, mode, reset)
        return _sequence(model, mode, reset)


def _sequence(model: Any, mode: str, reset: bool) -> FlatModule:
    """Layers, mixers, backbones and tasks with an output at every step."""
    step = mode == "step"
    varying = {0: "batch"} if step else {0: "batch", 1: "length"}
    shape = (BATCH,) if step else (BATCH, LENGTH)
    layer = isinstance(model, MinRNN)
    if layer and not step and not model.batch_first:
        varying, shape = {0: "length", 1: "batch"}, shape[::-1]
    tokens = isinstance(model, SequenceTask)
    x = torch.zeros(shape, dtype=torch.long) if tokens else torch.randn(*shape, _width(model))
    start = state = None
    if layer or not _reads_backward(model):
        start = state = model.initial_state(BATCH)
        if not layer:
            state = _used(model, start, x if step else x[:, 0])
    return (Step if step else Sequence)(
        model,
        [Input("input", x, varying)],
        "logits" if tokens else "output",
        start=start,
        state=state,
        batch_dim=int(layer),
        reset=_reset(reset, shape, varying),
    )


def _classification(task: ClassificationTask, mode: str, reset: bool) -> FlatModule:
    if mode == "step":
        if task.pairs:
            raise InputError(
                "a task of pairs has no step, since it compares whole sequences: export it with mode sequence"
            )
        tokens = torch.zeros(BATCH, dtype=torch.long)
        before = task.backbone.initial_state(BATCH)
        after = _used(task.backbone, before, task.encoder(tokens))
        pooled = [] if task.pooling == "last" else [torch.zeros(BATCH, task.dim), torch.zeros(BATCH, 1)]
        return ClassificationStep(
            task,
            [Input("input", tokens, {0: "batch"})],
            "logits",
            start=(before, pooled),
            state=(after, pooled),
            reset=_reset(reset, (BATCH,), {0: "batch"}),
        )
    if reset:
        raise InputError("a classification of whole sequences takes no reset: each row is one sequence")
    pair = (2,) if task.pairs else ()
    tokens = torch.zeros(BATCH, *pair, LENGTH, dtype=torch.long)
    lengths = torch.full((BATCH, *pair), LENGTH - 1)
    inputs = [Input("input", tokens, {0: "batch", tokens.dim() - 1: "length"}), Input("lengths", lengths, {0: "batch"})]
    return ClassificationSequence(task, inputs, "logits")


def _policy(task: PolicyTask, mode: str, reset: bool) -> FlatModule:
    step = mode == "step"
    shape = (BATCH,) if step else (BATCH, LENGTH)
    varying = {0: "batch"} if step else {0: "batch", 1: "length"}
    action = torch.zeros(shape, dtype=torch.long) if task.discrete else torch.zeros(*shape, task.output_size)
    examples = [torch.randn(*shape, task.input_size), action, torch.ones(shape), torch.ones(shape, dtype=torch.long)]
    names = ("observation", "previous_action", "return_to_go", "timestep")
    names = names if step else ("observations", "actions", "returns_to_go", "timesteps")
    taken = (True, True, task.condition_on_return, task.max_timestep > 0)
    given = [Input(*each, varying) for each, use in zip(zip(names, examples, strict=True), taken, strict=True) if use]
    output = "logits" if task.discrete else "output"
    if not step:
        return PolicySequence(task, given, output, reset=_reset(reset, shape, varying))
    start = task.initial_state(BATCH)
    token = torch.zeros(BATCH, task.dim)
    return PolicyStep(
        task, given, output, start=start, state=_used(task.backbone, start, token), reset=_reset(True, shape, varying)
    )


def _online_policy(task: PPOTask, mode: str, reset: bool) -> FlatModule:
    step, continuous = mode == "step", task.actions == "continuous"
    shape = (BATCH,) if step else (BATCH, LENGTH)
    varying = {0: "batch"} if step else {0: "batch", 1: "length"}
    given = [Input("observation" if step else "observations", torch.randn(*shape, task.input_size), varying)]
    if task.encoder.embed_action is not None:
        several = (len(task.actions),) if task.encoder.several else ()
        size, dtype = ((task.output_size,), torch.float32) if continuous else (several, torch.long)
        name = "previous_action" if step else "previous_actions"
        given.append(Input(name, torch.zeros(*shape, *size, dtype=dtype), varying))
    start = task.initial_state(BATCH)
    return (OnlinePolicyStep if step else OnlinePolicySequence)(
        task,
        given,
        "output" if continuous else "logits",
        start=start,
        state=_used(task.backbone, start, torch.zeros(BATCH, task.dim)),
        reset=_reset(step or reset, shape, varying),
    )


def _reset(wanted: bool, shape: tuple[int, ...], varying: dict[int, str]) -> Input | None:
    return Input("reset", torch.zeros(shape, dtype=torch.bool), varying) if wanted else None


def _used(model: Any, state: State, x_t: Tensor) -> State:
    """The state after a few steps: a cache has then grown, so that its sizes differ from those at the start."""
    for _ in range(3):
        _, state = model.step(x_t, state)
    return state


def _reads_backward(model: Any) -> bool:
    if isinstance(model, MinRNN):
        return model.bidirectional
    if isinstance(model, ClassificationTask) and model.backward_backbone is not None:
        return True
    return not (model if isinstance(model, Mixer | Backbone) else model.backbone).causal


def _width(model: Any) -> int:
    """Features of the input of a layer, a mixer (``dim``, or those of its first linear map) or a backbone."""
    if isinstance(model, MinRNN):
        return model.input_size
    if isinstance(model, Backbone):
        return int(model.norm.normalized_shape[0])
    first = next((each.in_features for each in model.modules() if isinstance(each, nn.Linear)), None)
    width = getattr(model, "dim", first)
    if width is None:
        name = type(model).__name__
        raise InputError(f"the width of a {name} is unknown: set self.dim in its __init__, or export a Backbone of it")
    return int(width)


def _copy(model: nn.Module) -> nn.Module:
    """A copy without the Trainer, on the CPU, in float32 and evaluation mode."""
    trainer = getattr(model, "_trainer", None)
    memo = {} if trainer is None else {id(trainer): None}
    return copy.deepcopy(model, memo).cpu().float().eval().requires_grad_(False)
