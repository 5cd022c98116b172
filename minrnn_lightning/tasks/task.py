"""``Task``: what every LightningModule here shares: optimizer and schedule, fine-tuning, evaluation, resuming."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from minrnn_lightning.batches import data_facts
from minrnn_lightning.checkpoint import load_matching, plain, plain_values, stored_tokenizer
from minrnn_lightning.errors import InputError
from minrnn_lightning.hub import training_facts
from minrnn_lightning.memory import check_memory
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.mixers import Mixer, mixer_name
from minrnn_lightning.nn.size import flops, matching_dim, parse_count, products
from minrnn_lightning.tasks.batch_types import check_batch_type
from minrnn_lightning.tasks.fully_sharded import fully_shard
from minrnn_lightning.tasks.optimization import OptimizationMixin
from minrnn_lightning.tasks.pretrained import PretrainedMixin
from minrnn_lightning.tasks.schedule import Shape

BACKBONE_ARGUMENTS = (
    "dim",
    "depth",
    "mixer",
    "mixer_args",
    "expansion",
    "kernel_size",
    "mlp_ratio",
    "dropout",
    "chunk",
    "mlp_kernel_size",
)


class Task(PretrainedMixin, OptimizationMixin, LightningModule, ABC):
    """A model with optimizer, schedule and evaluation; subclasses define its modules, loss and metrics.

    A subclass makes ``encoder``, ``backbone`` (with ``make_backbone``) and ``head``, in this order, in its ``__init__``
    after that of ``Task``, which sets the width ``dim``. ``SequenceTask`` is the base for an output at every step.

    Every argument is kept in the checkpoint's hyper-parameters as a plain value. A run that resumes from a checkpoint
    has the learning rate, weight decay, warm-up and number of steps of the new task and Trainer; one line lists what
    differs from the checkpoint.

    The training loss is the mean over the targets of a batch. Where batches hold different numbers of targets, each
    counts the same in a gradient that is accumulated over several of them or averaged over processes
    (``accumulate_grad_batches``, DDP), as Lightning does it; what is logged for validation and test is exact.

    Args:
        input_size: Number of different input tokens; the data module sets it on the command line.
        output_size: Number of different output tokens; the data module sets it on the command line.
        mixer: Sequence mixer: its name, its class or the class's path, or a list of these that is repeated to the depth
            (a hybrid).
        dim: Width of the stack.
        depth: Number of blocks.
        expansion: Hidden units of a mixer per channel.
        kernel_size: Steps of the causal convolution before each mixer; 0 for none.
        mlp_ratio: Hidden units of each MLP per channel; 0 leaves it out.
        dropout: Probability of dropping an element, in training.
        lr: Highest learning rate of AdamW, reached after the warm-up.
        weight_decay: Decoupled weight decay, on matrices only (not on biases, norms and what is marked
            ``_no_weight_decay``).
        warmup: Steps over which the learning rates rise from 0; then they fall to 0 at the last step.
        init_from: Checkpoint from which every weight with a matching name and shape is loaded before training.
        compile: Compile the backbone with ``torch.compile``.
        mixer_args: Further arguments of the mixers, by name or path: ``{"attention": {"window": 128}}``.
        match_parameters: Number of parameters, such as 6300000 or 6.3M, to reach by another width than ``dim``, so that
            different mixers compare at equal size.
        muon_lr: Highest learning rate of Muon, which then trains the matrices of the linear maps in the backbone;
            without it, AdamW trains everything.
        muon_momentum: Momentum of Muon; trainings of a few hundred steps want less.
        schedule: How the learning rates fall after the warm-up: cosine or linear.
        chunk: Steps of a sequence that the backbone computes at a time, which needs less memory for long ones; see
            ``Backbone``.
        mlp_kernel_size: Steps of a causal convolution before each MLP; 0 for none.

    Raises:
        InputError: A size is out of range, the mixer unknown, or the number of parameters out of reach.

    Attributes:
        batch_type: Class of the training batches of the data modules that fit the task; None for any, as for a subclass
            that defines ``batch_loss`` and not this.
    """

    batch_type: type[Any] | None = None
    tokens_per_step = 1  # tokens in the backbone for each step of the data
    causal = True  # no step may see later ones or padding; a subclass may set it to False
    encoder: nn.Module
    backbone: Backbone
    head: nn.Module
    dim: int
    metrics: Mapping[str, Metric]

    def __init__(
        self,
        input_size: int,
        output_size: int,
        mixer: str | type[Mixer] | list[str | type[Mixer]] = "mingru",
        dim: int = 384,
        depth: int = 3,
        expansion: float = 2.0,
        kernel_size: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: int = 100,
        init_from: str | None = None,
        compile: bool = False,  # noqa: A002
        mixer_args: dict[str, dict[str, Any]] | None = None,
        match_parameters: int | str | None = None,
        muon_lr: float | None = None,
        muon_momentum: float = 0.95,
        schedule: Shape = "cosine",
        chunk: int | None = None,
        mlp_kernel_size: int = 0,
    ) -> None:
        super().__init__()
        _check(input_size=input_size, output_size=output_size, dim=dim)
        what = f"the weights for dim {dim}, input_size {input_size} and output_size {output_size}"
        check_memory(4 * dim * (input_size + output_size), what)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {dropout}")
        if muon_lr is not None and not 0 < muon_lr < math.inf:
            raise InputError(f"muon_lr must be above 0 and finite, or null for AdamW alone, got {muon_lr}")
        if not 0 <= muon_momentum < 1:
            raise InputError(f"muon_momentum must be at least 0 and below 1, got {muon_momentum}")
        if schedule not in get_args(Shape):
            raise InputError(f"schedule must be cosine or linear, got {schedule!r}")
        if not (0 < lr < math.inf and 0 <= weight_decay < math.inf and warmup >= 0):
            raise InputError(
                "lr must be above 0 and finite, weight_decay at least 0 and finite, warmup at least 0, "
                f"got lr {lr}, weight_decay {weight_decay}, warmup {warmup}"
            )
        self.input_size = int(input_size)
        self.output_size = int(output_size)
        self.save_hyperparameters(ignore=["init_from"])  # a loaded checkpoint must not look for another one
        sizes: dict[str, Any] = {
            "dim": dim,
            "depth": depth,
            "expansion": expansion,
            "kernel_size": kernel_size,
            "mlp_ratio": mlp_ratio,
        }
        sizes |= {"dropout": dropout, "mixer_args": mixer_args, "chunk": chunk, "mlp_kernel_size": mlp_kernel_size}
        sizes = plain(sizes, "options")  # NumPy's, from a sweep
        # A class is kept as its name or path, which a checkpoint can hold.
        names = mixer_name(mixer) if isinstance(mixer, str | type) else [mixer_name(each) for each in mixer or []]
        self.save_hyperparameters({**plain_values(self.hparams), **sizes, "mixer": names})
        if match_parameters is not None:
            self.hparams["dim"] = matching_dim(self._parameters_at, parse_count(match_parameters))
        self.hparams["match_parameters"] = None  # nor for the width again
        self.dim = self.hparams["dim"]
        self.lr = plain(lr, "lr")
        self.muon_lr = plain(muon_lr, "muon_lr")
        self.muon_momentum = plain(muon_momentum, "muon_momentum")
        self.schedule: Shape = schedule
        self.weight_decay = plain(weight_decay, "weight_decay")
        self.warmup = plain(warmup, "warmup")
        self._measured: dict[str, int] = {}  # steps at which metrics of held-out data were logged, by name
        self._work: float | None = None  # floating-point operations per token, counted before weights are sharded
        self.init_from = init_from
        self.compile_backbone = compile
        self.dropout = Dropout(dropout)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "batch_type" not in vars(cls) and not {"batch_loss", "logits_and_targets"}.isdisjoint(vars(cls)):
            cls.batch_type = None

    def check_data(self, data: Any) -> None:
        """Refuse a data module whose batches are for another task.

        Raises:
            InputError: They are of another class than those that the task takes.
        """
        check_batch_type(self, data, Task)

    def _parameters_at(self, dim: int) -> int:
        """The number of parameters of the same task with another width, including the modules of subclasses."""
        with torch.device("meta"):
            task = type(self)(**{**self.hparams, "dim": dim, "match_parameters": None})
        return sum(p.numel() for p in task.parameters())

    def make_backbone(self) -> Backbone:
        """Make a backbone of the width, depth and mixers that the task was given.

        Raises:
            InputError: A size is out of range, a mixer unknown, or bidirectional where the task is causal.
        """
        backbone = Backbone(**{name: self.hparams[name] for name in BACKBONE_ARGUMENTS})
        if self.causal and not backbone.causal:
            raise InputError(f"{type(self).__name__} cannot use a bidirectional mixer: a step would see those after it")
        return backbone

    def __dir__(self) -> Iterable[str]:
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        if self._trainer is not None or self._fabric is not None:
            return names
        return [name for name in names if name != "trainer"]  # torch.jit.trace reads all, and this one would raise

    def flops(self, length: int) -> float:
        """Floating-point operations of a forward pass per token at a length; see ``size.flops`` for what is counted."""
        return flops(self.backbone, length) + products(self.head)

    @abstractmethod
    def batch_loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar to minimise."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch, logged as ``train/loss``."""
        loss = self.batch_loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def make_metrics(self) -> dict[str, Metric]:
        """Make the metrics of held-out data by name; they are logged as ``val/<name>`` and ``test/<name>``."""
        return {}

    def evaluate(self, batch: Any) -> None:
        """Add a batch of held-out data to ``self.metrics``."""
        raise NotImplementedError(
            f"{type(self).__name__} does not define its evaluation: add make_metrics and evaluate, or validation_step "
            "and test_step"
        )

    def log_metrics(self, part: str) -> None:
        """Log all metrics at the end of a pass over the ``part``, val or test."""
        for name, metric in self.metrics.items():
            self.log(f"{part}/{name}", metric, prog_bar=name in ("loss", "accuracy"))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation data."""
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test data."""
        self.log_metrics("test")

    def configure_model(self) -> None:
        """Divide the weights among processes if the strategy is FSDP2, and compile the backbone if ``compile`` is set.

        Both are in place, so that the parameters keep their names.
        """
        if self._device_mesh is not None:
            self._work = self._work or self.flops(self._tokens())  # while every process has all weights
            fully_shard(self, self.backbone.blocks, self._device_mesh["data_parallel"])
        if self.compile_backbone:
            self.backbone.compile()

    def setup(self, stage: str) -> None:
        """Make the metrics and load the weights of ``init_from``, which a checkpoint to resume from overrides later.

        Raises:
            InputError: The data are for another task, or a hyper-parameter has no plain value, so that a checkpoint
                with it could not be read.
        """
        data = getattr(self._trainer, "datamodule", None)
        self.check_data(data)
        for owner in (self, data) if isinstance(data, LightningDataModule) else (self,):
            owner.hparams.update({name: plain(value, name) for name, value in owner.hparams.items()})
        self.note_shapes()
        # Created for every run, so that nothing remains of an interrupted one.
        self.metrics = cast("Mapping[str, Metric]", nn.ModuleDict(self.make_metrics()))
        if stage == "fit" and self.init_from:
            loaded, others = load_matching(self, self.init_from)
            rank_zero_info(f"{self.init_from}: loaded {len(loaded)} tensors ({', '.join(loaded)})")
            rank_zero_info(f"{self.init_from}: kept {len(others)} as initialised ({', '.join(others) or 'none'})")

    def on_fit_start(self) -> None:
        """Print the size of the model."""
        size, length = self.parameter_count(), self._tokens()
        work = (self._work or self.flops(length)) / 1e6
        rank_zero_info(f"{self.dim} wide, {size:,} parameters, {work:.1f} MFLOP a token forward at length {length:,}")

    def _tokens(self) -> int:
        """Tokens in a sequence of the data."""
        return (data_facts(self._trainer).length or 256) * self.tokens_per_step

    def log(self, name: str, *args: Any, **options: Any) -> None:
        """``LightningModule.log``, which notes of which step the metrics of held-out data are."""
        super().log(name, *args, **options)
        if self._trainer is not None and name.startswith(("val/", "test/")):
            self._measured[name] = self.trainer.global_step

    def held_out_metrics(self) -> dict[str, float]:
        """What was logged as ``val/…`` and ``test/…`` of the present weights, without those of earlier steps."""
        trainer = self.trainer
        metrics = trainer.callback_metrics.items()
        return {name: float(value) for name, value in metrics if self._measured.get(name) == trainer.global_step}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics and the number of these weights, the steps of the schedule, and the name of the class."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["metrics"] = self.held_out_metrics()
        checkpoint["parameters"] = self.parameter_count()
        checkpoint["max_steps"] = self.trainer.max_steps
        checkpoint["task"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Print which settings differ from those of the run that is resumed."""
        super().on_load_checkpoint(checkpoint)
        self.tokenizer, self.training_facts = stored_tokenizer(checkpoint), training_facts(checkpoint)
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == "fit":
            data = getattr(trainer, "datamodule", None)
            now = {**self.hparams, **getattr(data, "hparams", {}), "max_steps": trainer.max_steps}
            before = {**checkpoint.get("hyper_parameters", {}), **checkpoint.get("datamodule_hyper_parameters", {})}
            before |= {name: checkpoint[name] for name in ("max_steps",) if name in checkpoint}
            changed = [
                f"{name} {now[name]} (checkpoint: {old})"
                for name, old in before.items()
                if name in now and _written(now[name]) != _written(old)
            ]
            if changed:
                rank_zero_info(f"Settings that differ from those of the checkpoint: {', '.join(changed)}")


def _written(value: Any) -> str:
    """A setting as text; a list and a tuple of the same values have the same text."""
    return json.dumps(value, sort_keys=True, default=str)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")
