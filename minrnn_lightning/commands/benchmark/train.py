"""``minrnn benchmark train``: training steps of a recipe, its matrix products alone, and with the paper's scan."""

import time
from argparse import ArgumentParser
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.commands.benchmark.measure import Linears, PeakMemory, Step, measurement, wait
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.commands.checks import check_function
from minrnn_lightning.commands.fit import MinRNNCLI
from minrnn_lightning.commands.recipes import find_recipes
from minrnn_lightning.nn.mixers.gated import GatedMixer
from minrnn_lightning.ops.reference import log_space_scan

PRODUCTS, STEP, LOG_SPACE = "its matrix products alone", "training step", "the same with the paper's log-space scan"
REPEATS = 7  # timed training steps with each scan by default


def make_parser() -> ArgumentParser:
    """The parser of the options that ``minrnn fit`` does not have."""
    parser = ArgumentParser(
        "minrnn benchmark train",
        description="Time training steps of a recipe, its matrix products alone, and with the paper's scan.",
        epilog="All options of `minrnn fit` are accepted too, with a recipe: --config shakespeare. "
        "On the CPU without --trainer.accelerator gpu.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        help=f"Number of times that each is timed, in turns (default: {REPEATS}).",
    )
    parser.add_argument("--output", metavar="FOLDER", help="Folder to write train.json, train.csv and train.png to.")
    parser.add_argument("--compare", metavar="FILE", help="The train.json of an earlier run; adds the ratio to it.")
    return parser


def train(args: list[str]) -> None:
    """Time Lightning's training steps of a recipe, its matrix products alone, and with the paper's scan.

    A step is forward, loss, backward, clipping and AdamW on one batch of the recipe's data, compiled with
    ``--model.compile true``. The matrix products have the shapes and the precision of the step's, forward and backward.
    The paper's scan stands in for that of minGRU and minLSTM mixers; a model without them has no row for it.

    Args:
        args: The options of ``minrnn fit``, with a recipe, and ``--repeats N``, ``--output FOLDER`` and
            ``--compare FILE`` as the other benchmarks have them.
    """
    options, args = make_parser().parse_known_args(args)
    check_function("benchmark train", vars(options))
    cli = _Built(["fit", "--trainer.accelerator=cpu", *find_recipes(args)])
    data, model, precision = cli.datamodule, cli.model, cli.trainer.precision
    device = cli.trainer.strategy.root_device
    about = {"precision": precision, "repeats": options.repeats}
    report = Report("train", ["ms", "peak_mb"], about, device, options.output, options.compare)
    data.prepare_data()
    data.setup("fit")
    batch = move_data_to_device(next(iter(data.train_dataloader())), device)
    products = Products()
    steps = TimedSteps(model, products, options.repeats, device)
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if device.index is None else [device.index],
        precision=precision,
        gradient_clip_val=cli.trainer.gradient_clip_val,
        max_steps=steps.total,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[products, steps],
    )
    batches: Any = [batch] * steps.total
    data.train_dataloader = lambda: DataLoader(batches, batch_size=None)
    trainer.fit(model, datamodule=data)
    batch_size, length = len(batch[0]), row_length(batch)
    rows = [
        measurement(name, length, seconds, batch_size, steps.peaks[name]) for name, seconds in steps.seconds.items()
    ]
    report.add(f"A batch of {batch_size} × {length:,}", rows, [PRODUCTS, STEP])
    report.save()


def row_length(batch: Any) -> int:
    """Time steps in a row of a batch: tokens, of both sequences of a pair, or vectors of real numbers."""
    row: Tensor = batch[0][0]
    return row[..., 0].numel() if row.is_floating_point() else row.numel()


class _Built(MinRNNCLI):
    """Model, data and trainer of a recipe, built and not run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Products(Callback):
    """The matrix products of a training step, noted before the first one, with the types that Lightning gives it."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the products of the first batch, which computes its loss once more."""
        if batch_idx == 0:
            eager = torch.compiler.set_stance("force_eager")  # compiled code calls no F.linear
            task: Any = pl_module
            with trainer.precision_plugin.forward_context(), Linears() as linears, eager:
                task.batch_loss(batch)
            self.run = linears.products()

    def __call__(self) -> None:
        """Compute them."""
        self.run()


class TimedSteps(Callback):
    """Times training steps of Lightning with the package's scan and the paper's in turns, and the matrix products.

    They take turns so that a noisy machine disturbs them alike. The first round is a warm-up, the second measures
    memory.

    Args:
        model: Model whose mixers get one scan or the other, by their attribute ``function``.
        products: The matrix products of a step.
        repeats: Number of rounds that are timed.
        device: Device of the model; a GPU is synchronised.

    Attributes:
        names: What the training steps of a round are; one that the paper's scan would not change is left out.
        total: Number of training steps in all rounds.
        seconds: Seconds of every repeat.
        peaks: Peak of the memory in bytes.
    """

    def __init__(self, model: LightningModule, products: Step, repeats: int, device: torch.device) -> None:
        self.mixers = [module for module in model.modules() if isinstance(module, GatedMixer)]
        self.products = products
        self.device = device
        self.names = [STEP, LOG_SPACE] if self.mixers else [STEP]
        self.total = len(self.names) * (repeats + 2)
        self.seconds: dict[str, list[float]] = {name: [] for name in (PRODUCTS, *self.names)}
        self.peaks: dict[str, int] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose the scan and start the clock."""
        self.round, turn = divmod(batch_idx, len(self.names))
        self.name = self.names[turn]
        for mixer in self.mixers:
            # an attribute of the instance hides that of the class
            vars(mixer).pop("function", None) if self.name == STEP else vars(mixer).update(function=log_space_rnn)
        self._start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and measure the matrix products once a round."""
        self._stop(self.name)
        trainer.optimizers[0].zero_grad()  # so that a step leaves no tensors behind for the memory of the next
        if self.name == self.names[-1]:
            self._start()
            self.products()
            self._stop(PRODUCTS)

    def _start(self) -> None:
        self.memory = PeakMemory(self.device)
        if self.round == 1:
            self.memory.__enter__()
        wait(self.device)
        self.started = time.perf_counter()

    def _stop(self, name: str) -> None:
        wait(self.device)
        seconds = time.perf_counter() - self.started
        if self.round == 1:
            self.memory.__exit__(None, None, None)
            self.peaks[name] = self.memory.bytes
        elif self.round > 1:
            self.seconds[name].append(seconds)


def log_space_rnn(
    *logits_and_state: Tensor | None, return_state: bool = False, **options: object
) -> Tensor | tuple[Tensor, Tensor]:
    """The paper's log-space scan, called like ``min_gru`` and ``min_lstm``; state, resets and direction are ignored."""
    logits = [each.float() for each in logits_and_state[:-1] if each is not None]
    *gates, candidate = logits
    if len(gates) == 1:
        gate = gates[0]
    else:  # minLSTM: two gates divided by their sum
        forget, input_ = gates
        gate = F.logsigmoid(input_) - F.logsigmoid(forget)
    assert logits_and_state[0] is not None
    h = log_space_scan(gate, candidate)
    states = h.to(logits_and_state[0].dtype)
    return (states, h[:, -1]) if return_state else states
