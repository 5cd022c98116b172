"""What is needed to use an exported model, as strings by name that are stored in its file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import nn

from minrnn_lightning import __version__
from minrnn_lightning.export.modules import FlatModule
from minrnn_lightning.tasks import PolicyTask, PPOTask
from minrnn_lightning.tasks.action_bounds import ActionBounds
from minrnn_lightning.tasks.action_distributions import GaussianActions
from minrnn_lightning.tasks.running_moments import divisor
from minrnn_lightning.tasks.task import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def metadata(model: nn.Module, module: FlatModule, mode: str, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """What is needed to use an exported model; all but ``class``, ``mode``, ``version`` and ``tokenizer`` are JSON.

    Args:
        model: The model.
        module: What ``flatten`` made of it.
        mode: ``step`` or ``sequence``.
        tokenizer: The vocabulary; by default that of the data module of the task's Trainer, or else the one that was
            loaded with the task, if there is any.

    Returns:
        - ``class``, ``mode`` and ``version``, that of this package,
        - ``inputs``: by name the type and the shape, with the names of sizes that vary,
        - ``outputs``: their names,
        - ``initial_state``: the values before the first step of a sequence, by name 0.0 or nested lists for each
          sequence of a batch,
        - of a task, ``hyper_parameters``,
        - of a policy, ``observation_mean``, ``observation_std``, ``action_low`` and ``action_high``, which the model
          applies itself (it takes and returns the units of the environment), and ``environment``,
        - ``tokenizer``: the JSON that ``tokenizers.Tokenizer.from_str`` reads.
    """
    values: dict[str, Any] = {"inputs": _described(module), "outputs": module.outputs}
    if module.starts:
        values["initial_state"] = module.initial_values()
    if isinstance(model, Task):
        values["hyper_parameters"] = dict(model.hparams)
        data = getattr(model._trainer, "datamodule", None)
        tokenizer = tokenizer or getattr(data, "tokenizer", None) or model.tokenizer
    if isinstance(model, PolicyTask | PPOTask):
        std = divisor(model.observation_std) if isinstance(model, PPOTask) else model.observation_std
        values |= {"observation_mean": model.observation_mean.tolist(), "observation_std": std.tolist()}
        bounds = _bounds(model)
        if bounds is not None:
            low, high = bounds.middle - bounds.scale, bounds.middle + bounds.scale
            values |= {"action_low": low.tolist(), "action_high": high.tolist()}
        values["environment"] = model.environment
    texts = {"class": type(model).__name__, "mode": mode, "version": __version__}
    texts |= {name: json.dumps(value, default=str) for name, value in values.items()}
    return texts if tokenizer is None else {**texts, "tokenizer": tokenizer.to_str()}


def _bounds(policy: PolicyTask | PPOTask) -> ActionBounds | None:
    """The bounds of continuous actions."""
    if isinstance(policy, PolicyTask):
        return None if policy.discrete else policy.action_bounds
    return policy.distribution.bounds if isinstance(policy.distribution, GaussianActions) else None


def _described(module: FlatModule) -> dict[str, Any]:
    return {
        name: {
            "type": str(example.dtype).removeprefix("torch."),
            "shape": [varying.get(d, size) for d, size in enumerate(example.shape)],
        }
        for name, example, varying in module.inputs
    }
