"""``minrnn benchmark train``: training steps of a recipe beside its matrix products alone and the paper's scan."""

from argparse import ArgumentParser
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minrnn_lightning.commands.benchmark.measure import Step, time_and_memory
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.commands.fit import MinRNNCLI
from minrnn_lightning.commands.recipes import find_recipes
from minrnn_lightning.ops.reference import log_space_scan

PRODUCTS, WHOLE, LOG_SPACE = "its matrix products alone", "training step", "the same with the paper's log-space scan"
STEPS = 7  # training steps of each kind that are timed


def train(words: list[str]) -> None:
    """Time whole training steps of a recipe on the CPU beside its matrix products alone and the paper's scan.

    A step is forward, loss, backward, clipping and AdamW on one batch of the recipe's data, compiled with
    ``--model.compile true``. The matrix products have the shapes and the precision of the step's, forward and backward.

    Args:
        words: the options of ``minrnn fit``, a recipe among them, and ``--output FOLDER`` and ``--compare FILE`` as
            the other benchmarks have them.
    """
    parser = ArgumentParser(
        "minrnn benchmark train",
        description="Time training steps of a recipe on the CPU beside its matrix products alone and the paper's scan.",
        epilog="Every option of `minrnn fit` besides, a recipe among them: --config shakespeare.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--output", metavar="FOLDER", help="Folder to write train.json, train.csv and train.png to.")
    parser.add_argument("--compare", metavar="FILE", help="The train.json of an earlier run; adds the ratio to it.")
    options, words = parser.parse_known_args(words)
    cli = _Built(["fit", *find_recipes(words), "--trainer.accelerator=cpu"])
    data, trainer, model = cli.datamodule, cli.trainer, cli.model
    device = torch.device("cpu")
    about = {"precision": trainer.precision, "repeats": STEPS}
    report = Report("train", ["ms", "peak_mb"], about, device, options.output, options.compare)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=trainer.precision == "bf16-mixed")

    def step() -> None:
        with autocast:
            loss = model.batch_loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), trainer.gradient_clip_val or torch.inf)
        optimizer.step()
        optimizer.zero_grad()  # last, so that a step leaves no tensors behind for the memory of the next

    def log_space_step() -> None:
        with mock.patch("minrnn_lightning.nn.rnn.gated_scan", paper_scan):
            step()

    with Linears() as linears:
        step()
    model.configure_model()  # compiles it, where that is asked for
    steps = {PRODUCTS: linears.products(), WHOLE: step, LOG_SPACE: log_space_step}
    batch_size, length = len(batch[0]), batch[0].shape[-1]
    rows = time_and_memory(steps, STEPS, device, length, batch_size)
    report.add(f"A batch of {batch_size} × {length:,}", rows, [PRODUCTS, WHOLE])
    report.save()


class _Built(MinRNNCLI):
    """Model, data and trainer of a recipe, built and not run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Linears(TorchFunctionMode):
    """Notes the operands of every ``F.linear`` inside a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            x, weight = (operand.detach().to(result.dtype).clone().requires_grad_() for operand in args[:2])
            self.operands.append((x, weight))
        return result

    def products(self) -> Step:
        """The matrix products of what was noted: one forward and two backward for each, from a gradient of ones."""
        gradients = [torch.ones_like(F.linear(x, weight)) for x, weight in self.operands]

        def step() -> None:
            for (x, weight), gradient in zip(self.operands, gradients, strict=True):
                torch.autograd.grad(F.linear(x, weight), (x, weight), gradient)

        return step


def paper_scan(gate: Tensor, candidate: Tensor, *_: object, forget: Tensor | None = None, **__: object) -> Tensor:
    """The log-space scan, called like ``gated_scan``; state and resets are left out."""
    gate, dtype = gate.float(), gate.dtype
    if forget is not None:  # minLSTM: two gates divided by their sum
        gate = F.logsigmoid(gate) - F.logsigmoid(forget.float())
    return log_space_scan(gate, candidate.float()).to(dtype)
