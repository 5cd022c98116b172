"""Strategies of Lightning's Trainer, beside those of Lightning: sequences, or the weights, on several processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.sequence_parallel import check_shardable, sequence_parallel
from minrnn_lightning.ops.sharded import traffic
from minrnn_lightning.sharded_checkpoint import SHARD, part_of, replace_folder
from minrnn_lightning.tasks import LanguageTask
from minrnn_lightning.tasks.fully_sharded import divide


class SequenceParallelStrategy(DDPStrategy):
    """Divides every sequence of a batch among processes, for sequences that are too long for one.

    Processes with consecutive ranks form a group, which reads the same batches and of which each process computes its
    part of the steps, from the state at the end of the part before; see ``minrnn_lightning.ops.sharded_scan``. The
    groups read different batches, as the processes of DDP do. The gradient, averaged over all processes, is that of
    DDP with one process in the place of each group. For ``LanguageTask`` with the mixers mingru, minlstm and
    gated_mingru, in training, validation and test; not with ``chunk`` or ``compile``.

    ``Trainer(strategy="sequence_parallel")`` is one group; ``sequence_parallel_2``, ``_4`` and ``_8`` are groups of so
    many.

    Args:
        sequence_processes: Processes in a group, by which their number must be divisible; all of them if None.
        options: Of ``DDPStrategy``.

    Raises:
        InputError: The number of processes is not divisible, or the task cannot take parts of sequences.
    """

    def __init__(self, sequence_processes: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if sequence_processes is not None and sequence_processes < 1:
            raise InputError(f"sequence_processes must be at least 1, or null for all, got {sequence_processes}")
        self.sequence_processes = sequence_processes
        self._group: Any = None  # the processes that share the sequences of this one
        self._reported = False

    @property
    def group_size(self) -> int:
        """The number of processes that share a sequence."""
        return self.sequence_processes or self.num_nodes * self.num_processes

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The share of the data: that of the group."""
        return {
            "num_replicas": self.num_nodes * self.num_processes // self.group_size,
            "rank": self.global_rank // self.group_size,
        }

    def check_task(self, task: LightningModule) -> None:
        """Refuse a task that cannot take parts of sequences.

        Raises:
            InputError: It is another task than ``LanguageTask``, is compiled or has chunks, or a mixer needs all steps.
        """
        if not isinstance(task, LanguageTask):
            raise InputError(f"SequenceParallelStrategy needs a LanguageTask, got {type(task).__name__}; use ddp")
        if task.compile_backbone:
            raise InputError("compile must be false with SequenceParallelStrategy, which communicates in the backbone")
        check_shardable(task.backbone)

    def _configure_launcher(self) -> None:
        processes = self.num_nodes * self.num_processes
        if processes % self.group_size:
            raise InputError(
                f"sequence_processes must divide the number of processes, which is {processes} (trainer.devices × "
                f"trainer.num_nodes), got {self.group_size}"
            )
        super()._configure_launcher()

    def connect(self, model: LightningModule) -> None:
        """Check the task, and keep it."""
        self.check_task(model)
        super().connect(model)

    def setup_distributed(self) -> None:
        """Let the processes find each other, and form the groups."""
        super().setup_distributed()
        for first in range(0, self.world_size, self.group_size):  # every process takes part in making each group
            ranks = list(range(first, first + self.group_size))
            group = distributed.new_group(ranks, timeout=self._timeout)
            if self.global_rank in ranks:
                self._group = group

    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        """Take this process's part of each sequence.

        Raises:
            InputError: A sequence has fewer steps than there are processes for it.
        """
        shape = batch[0].shape[:2]
        if (length := shape[1]) < self.group_size:
            raise InputError(
                f"length must be at least {self.group_size}, a step for each process of a sequence, got {length}"
            )
        part = self.global_rank % self.group_size

        def own(x: Any) -> Any:
            return x.tensor_split(self.group_size, 1)[part] if isinstance(x, Tensor) and x.shape[:2] == shape else x

        return super().batch_to_device(tree_map(own, batch), device, dataloader_idx)

    @contextmanager
    def _in_parts(self) -> Iterator[None]:
        assert self.lightning_module is not None
        with sequence_parallel(self.lightning_module, self._group):
            yield

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of the complete sequences, whose gradient is that of this process's parts."""
        if not self._reported:
            traffic.messages = traffic.bytes = 0
        with self._in_parts():
            return super().training_step(*args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Backward pass; the first one is followed by a line with the communication of the step."""
        loss: Tensor = super().backward(*args, **kwargs)
        if not self._reported:
            self._reported = True
            rank_zero_info(
                f"Sequences on {self.group_size} processes each: {traffic.messages} messages of together "
                f"{traffic.bytes:,} bytes from each process in a training step, beside the gradients"
            )
        return loss

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validation on this process's parts."""
        with self._in_parts():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Test on this process's parts."""
        with self._in_parts():
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to predict, as every process would return a part.

        Raises:
            InputError: Always.
        """
        raise InputError("predict needs complete sequences: run it without SequenceParallelStrategy")


for _size in (None, 2, 4, 8):
    StrategyRegistry.register(
        "sequence_parallel" + ("" if _size is None else f"_{_size}"),
        SequenceParallelStrategy,
        description="Every sequence on several processes",
        override=True,
        sequence_processes=_size,
    )


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2: weights, gradients and optimizer state are divided among all processes, on CPUs too.

    ``Trainer(strategy="fsdp2")``, and ``fsdp2_sharded_checkpoint`` for a checkpoint that is a folder with a file from
    each process, so that no process needs memory for everything when it is written. Both kinds are read by any number
    of processes with any strategy, and by every command.

    Args:
        sharded_checkpoint: Whether each process writes its part of the checkpoints.
        options: ``process_group_backend`` and ``timeout`` of ``ModelParallelStrategy``.
    """

    def __init__(self, sharded_checkpoint: bool = False, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoint, **options)
        self.sharded_checkpoint = sharded_checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning restores the optimizer, after the hooks of the task."""
        return True

    def setup_environment(self) -> None:
        """Let the processes find each other, all as one group.

        Raises:
            InputError: The devices are CPUs, and PyTorch is 2.6, whose streams of CPUs lack what FSDP2 calls.
        """
        if self.root_device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise InputError(f"fsdp2 on CPUs needs a newer torch than {torch.__version__}; use hardware/fsdp or ddp")
        # There is no operation in place on it, here or in PyTorch's linear maps.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, complete on the first process or in shards."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, complete on the first process or in shards."""
        return self._to_save(optimizer.state_dict())

    def _to_save(self, tree: dict[str, Any]) -> dict[str, Any]:
        def convert(x: Any) -> Any:
            if not isinstance(x, DTensor):
                return x
            return {SHARD: x.to_local().cpu().clone()} if self.sharded_checkpoint else x.full_tensor().cpu()

        saved: dict[str, Any] = tree_map(convert, dict(tree))
        return saved

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: one file, or a folder with one from each process."""
        if not self.sharded_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        partial = Path(f"{path}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        if self.global_rank:
            checkpoint = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
        torch.save({"processes": self.world_size, "checkpoint": checkpoint}, part_of(partial, self.global_rank))
        self.barrier()
        if self.is_global_zero:
            replace_folder(partial, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without unpickling code, whatever ``weights_only`` says."""
        return read_checkpoint(self.broadcast(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shards of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        shards = {name: _shard(x, own.get(name)) for name, x in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of the optimizers' states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            state = {
                number: {name: _shard(x, parameters[number]) for name, x in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _shard(x: Any, like: Any) -> Any:
    """A complete tensor, divided as another one of its shape is; anything else as it is."""
    same = isinstance(x, Tensor) and isinstance(like, DTensor) and x.shape == like.shape
    return divide(x.to(like.device), like) if same else x


for _sharded in (False, True):
    StrategyRegistry.register(
        "fsdp2" + "_sharded_checkpoint" * _sharded,
        FullyShardedStrategy,
        description="FSDP2",
        override=True,
        sharded_checkpoint=_sharded,
    )
