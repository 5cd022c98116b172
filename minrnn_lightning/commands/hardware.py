"""The Trainer's options about hardware, checked against this machine and against each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from torch import distributed

from minrnn_lightning.errors import InputError

MOST_PROCESSES = max(8, os.cpu_count() or 1)  # on CPUs: one for each core; a few on small machines, for tests
CLUSTERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)  # that Lightning finds by itself
BACKENDS = ("gloo", "nccl", "mpi", "ucc", "xccl")  # by which processes communicate, where PyTorch is built with them
GPU_STRATEGIES = ("fsdp", "deepspeed")  # beginnings of the names of those that need GPUs


def check_hardware(trainer: Any) -> None:
    """Refuse an unknown accelerator, strategy or devices, and nodes that nothing has started.

    Args:
        trainer: Options of the Trainer.

    Raises:
        InputError: One of them is unknown or not for this machine.
    """
    accelerator, strategy, devices = trainer.accelerator, trainer.strategy, trainer.devices
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if isinstance(accelerator, str) and accelerator not in accelerators:
        raise InputError(f"trainer.accelerator must be one of {', '.join(accelerators)}, got {accelerator!r}")
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in strategies:
        names = ", ".join(name for name in strategies if "_" not in name)  # the others are variants of these
        raise InputError(f"trainer.strategy must be {names} or a variant that Lightning knows, got {strategy!r}")
    found_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not found_gpu)
    if (
        on_cpu
        and isinstance(strategy, str)
        and strategy.startswith(GPU_STRATEGIES)
        and not strategy.startswith("fsdp2")
    ):
        raise InputError(f"trainer.strategy {strategy} needs a GPU; on CPUs use ddp, or leave it out")
    _check_backend(strategy)
    if trainer.num_nodes > 1 and not (trainer.plugins or "MASTER_ADDR" in os.environ or _on_cluster()):
        raise InputError(  # the process would wait for the other nodes
            f"trainer.num_nodes {trainer.num_nodes} needs a process on every node: start it with torchrun or Slurm, or "
            "set MASTER_ADDR, MASTER_PORT and NODE_RANK on each"
        )
    if trainer.num_nodes > 1:
        _check_host()
    if isinstance(devices, str):
        devices = devices.strip()
        if devices == "auto":
            return
        try:
            numbers = [int(device) for device in devices.split(",") if device.strip()]
        except ValueError:
            numbers = []
        if not numbers:
            raise InputError(
                f"trainer.devices must be auto, a number of devices, or indices such as 0,1, got {devices!r}"
            )
        devices = numbers if "," in devices else numbers[0]
    if on_cpu and not (isinstance(devices, int) and 1 <= devices <= MOST_PROCESSES):
        raise InputError(
            f"trainer.devices must be from 1 to {MOST_PROCESSES} on a CPU, the number of processes, got {devices}"
        )
    indices = devices if isinstance(devices, list) else []
    if devices == 0 or (isinstance(devices, int) and devices < -1) or devices == [] or min(indices, default=0) < 0:
        raise InputError(
            f"trainer.devices must be auto, a number of at least 1, -1 for all or indices from 0, got {devices}"
        )


def _check_backend(strategy: Any) -> None:
    """Refuse a strategy whose processes would communicate by something that this PyTorch does not have."""
    options = strategy.get("init_args") if isinstance(strategy, Mapping | Namespace) else None
    given = (options or {}).get("process_group_backend")
    names = [part.rpartition(":")[2] for part in str(given).split(",")]  # cpu:gloo,cuda:nccl
    if given is not None and not all(map(distributed.is_backend_available, names)):
        found = ", ".join(filter(distributed.is_backend_available, BACKENDS))
        raise InputError(f"trainer.strategy.process_group_backend must be one of {found}, got {given!r}")


def _check_host() -> None:
    """Refuse the name of a first node that cannot be found: the process would look for it for half an hour."""
    host = os.environ.get("MASTER_ADDR")
    try:
        if host is not None:
            socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise InputError(
            f"the environment variable MASTER_ADDR must be the name or address of the first node; {host!r} cannot be "
            "found"
        ) from None


def _on_cluster() -> bool:
    """Whether Lightning knows the other nodes from the cluster that has started this process."""
    return any(cluster.detect() for cluster in CLUSTERS)
