"""``OptimizationMixin``: which optimizer and schedule train which parameters of a task."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.tasks.optimizer import MuonAdamW, multiplies_fast
from minrnn_lightning.tasks.plateau import NEVER, AdvanceAfterValidation
from minrnn_lightning.tasks.schedule import Shape, WarmupDecay, keep_settings

FSDP_PREFIX = "_fsdp_wrapped_module."  # in the names of parameters of wrapped modules
SELECTED_BY = {"AdamW": " (--model.muon_lr null)", "MuonAdamW": " (--model.muon_lr 0.04)"}


class OptimizationMixin(LightningModule):
    """AdamW, or Muon for the matrices of the backbone and AdamW for the rest, with a warm-up and a fall to 0.

    Attributes:
        lr: Highest learning rate of AdamW.
        muon_lr: Highest learning rate of Muon; None for AdamW alone.
        muon_momentum: Momentum of Muon.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Steps over which the learning rates rise from 0.
        schedule: How they fall afterwards: cosine or linear.
    """

    lr: float
    muon_lr: float | None
    muon_momentum: float
    weight_decay: float
    warmup: int
    schedule: Shape

    def __init__(self) -> None:
        super().__init__()
        self._saved_optimizer = "AdamW"  # of the checkpoint to resume from
        self._unsharded: dict[str, tuple[str, torch.Size]] = {}  # of all parameters, before a strategy shards them

    def note_shapes(self) -> None:
        """Note how each parameter is trained, and its shape, before a strategy shards the weights."""
        inside = self._in_backbones()
        self._unsharded = {
            name: self._group_and_shape(name, each, each in inside) for name, each in self.named_parameters()
        }

    def parameter_count(self) -> int:
        """The number of parameters, of a task in a Trainer also where each process has a part of them."""
        shapes = [shape for _, shape in self._unsharded.values()] or [each.shape for each in self.parameters()]
        return sum(shape.numel() for shape in shapes)

    def _in_backbones(self) -> set[nn.Parameter]:
        """The parameters of all backbones, of which a task may have several."""
        return {each for module in self.modules() if isinstance(module, Backbone) for each in module.parameters()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters by how they are trained: matrices by Muon, matrices by AdamW, and the rest, without decay."""
        trained_by: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "rest": []}
        shapes, inside = [], self._in_backbones()
        for name, parameter in self.named_parameters():
            known = self._unsharded.get(name.replace(FSDP_PREFIX, ""))
            group, shape = known or self._group_and_shape(name, parameter, parameter in inside)
            trained_by[group].append(parameter)
            if group == "muon":
                shapes.append(shape)
        groups: list[dict[str, Any]] = [
            {"params": trained_by["decay"], "weight_decay": self.weight_decay},
            {"params": trained_by["rest"], "weight_decay": 0.0},
        ]
        if self.muon_lr is not None:
            muon = {"muon": True, "shapes": shapes, "lr": self.muon_lr, "weight_decay": self.weight_decay}
            # Names under which the rates are logged; those of AdamW are the same with and without Muon.
            groups = [{**group, "name": f"pg{number}"} for number, group in enumerate(groups, 1)]
            groups.insert(0, {"params": trained_by["muon"], **muon, "name": "muon"})
        return groups

    def _group_and_shape(self, name: str, parameter: nn.Parameter, in_backbone: bool) -> tuple[str, torch.Size]:
        """How a parameter is trained, muon, decay or rest, and its shape, for Muon (maps, rows, columns)."""
        if parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False):
            return "rest", parameter.shape
        linear = parameter.ndim == 2 and in_backbone and name.rpartition(".")[2].startswith("weight")
        by_muon = self.muon_lr is not None and linear and not getattr(parameter, "_no_muon", False)
        if by_muon:
            rows, columns = parameter.shape
            maps: int = getattr(parameter, "_maps", 1)
            return "muon", torch.Size((maps, rows // maps, columns))
        return "decay", parameter.shape

    def make_optimizer(self) -> Optimizer:
        """AdamW, and Muon where ``muon_lr`` is given, with decay on matrices only."""
        if self.muon_lr is not None:
            # The type in which the model multiplies, where that saves time.
            narrow = self._trainer is not None and self.trainer.precision in ("bf16-mixed", "bf16-true")
            dtype = torch.bfloat16 if narrow and multiplies_fast(self.device) else None
            return MuonAdamW(self.parameter_groups(), lr=self.lr, momentum=self.muon_momentum, dtype=dtype)
        # Not fused: Lightning does not clip the gradients of a fused optimizer in mixed precision.
        return torch.optim.AdamW(self.parameter_groups(), lr=self.lr, betas=(0.9, 0.99))

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau:
        """Warm-up, then a fall to 0 at the last step of the run; it advances with every step."""
        return WarmupDecay(optimizer, self.warmup, self.trainer.estimated_stepping_batches, self.schedule)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the name of the optimizer."""
        checkpoint["optimizer"] = type(self.trainer.optimizers[0]).__name__ if self.trainer.optimizers else "AdamW"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the optimizer of the run that is resumed."""
        self._saved_optimizer = checkpoint.get("optimizer", "AdamW")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and the schedule, which advances with every step; ReduceLROnPlateau, with every validation.

        Raises:
            InputError: The schedule is ReduceLROnPlateau, and the run has no validation.
        """
        optimizer = self.make_optimizer()
        optimizer.register_load_state_dict_pre_hook(self._refuse_other_optimizer)
        keep_settings(optimizer)
        schedule = self.make_schedule(optimizer)
        config: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(optimizer, MuonAdamW):
            config["name"] = "lr-AdamW"  # as without Muon
        if isinstance(schedule, ReduceLROnPlateau):
            # Lightning would count its steps within an epoch, where validations may be counted over all epochs.
            config |= {"monitor": getattr(schedule, "monitor", "val/loss"), "frequency": NEVER}
            self._advance_after_validation()
        return cast("OptimizerLRScheduler", {"optimizer": optimizer, "lr_scheduler": config})

    def _advance_after_validation(self) -> None:
        """Have the callback that advances ReduceLROnPlateau."""
        if not self.trainer.enable_validation:
            raise InputError(
                "ReduceLROnPlateau advances with every validation, and this run has none: set "
                "trainer.limit_val_batches above 0, or choose another lr_scheduler"
            )
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, AdvanceAfterValidation) for callback in callbacks):
            callbacks.insert(0, AdvanceAfterValidation())

    def _refuse_other_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Refuse the state of another optimizer, which would load without an error and fail in the first step."""
        saved, chosen = self._saved_optimizer, type(optimizer).__name__
        if saved != chosen:
            raise InputError(
                f"the checkpoint was trained with {saved}, this run uses {chosen}: resume with {saved}"
                f"{SELECTED_BY.get(saved, '')}, or start a new run from its weights with --model.init_from"
            )
