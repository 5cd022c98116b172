"""Language modelling: predict the next token at every step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.tasks.metrics import mean_cross_entropy
from minrnn_lightning.tasks.task import Task


class TokenMeans(Metric):
    """Loss per token, character and byte over all real targets, however they are divided into batches and processes.

    A sum that is not a number makes every mean so: what a diverged model computes is not left out.

    Args:
        sizes: For every token how many characters begin in it and how many bytes it holds, int64 (2, tokens); None
            where nobody knows them.
        dtype: Of the sum of losses.
    """

    full_state_update = False
    nats: Tensor
    targets: Tensor
    text: Tensor

    def __init__(self, sizes: Tensor | None = None, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.sizes = sizes
        self.add_state("nats", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("text", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")  # characters and bytes

    def update(self, loss: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss in nats per real target, and its targets, those of -100 being no real ones."""
        real = targets != IGNORED
        count = real.sum()
        # A mean over no targets is 0/0 in some losses, but there is nothing to add.
        self.nats = self.nats + torch.where(count > 0, loss.detach().to(self.nats.dtype) * count, 0.0)
        self.targets = self.targets + count
        if self.sizes is not None:
            self.text = self.text + (self.sizes[:, targets.where(real, 0)] * real).flatten(1).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """The means by name."""
        loss = self.nats / self.targets
        means = {"loss": loss, "perplexity": loss.exp()}
        if self.sizes is not None:
            per_character, per_byte = (self.nats / math.log(2) / self.text).unbind()
            means |= {"bits_per_character": per_character, "bits_per_byte": per_byte}
        return means


class LanguageTask(Task):
    """Next-token prediction over batches (inputs, targets) of tokens, (batch, length) each.

    A target of -100 is padding: it counts nowhere. Logged is ``train/loss``, the mean over the real targets of a
    batch, in nats per token; and for ``val`` and ``test``, over all real targets of all batches and processes

    - ``loss``: nats per token,
    - ``perplexity``: its exponential,
    - ``bits_per_character`` and ``bits_per_byte``: all nats in bits, divided by the characters of the targets and by
      their bytes in UTF-8. These compare across vocabularies. They are logged where the data module knows the sizes
      of its tokens, as ``TextDataModule.token_sizes``.

    All of these are NaN if the loss of any real target is.
    """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per real target, of (batch, length, output_size) and (batch, length).

        It is 0 where there is none, so that a batch of padding alone changes nothing.
        """
        return mean_cross_entropy(logits, targets)

    def on_validation_epoch_start(self) -> None:
        """Begin the means of the validation part."""
        super().on_validation_epoch_start()
        self._start_means()

    def on_test_epoch_start(self) -> None:
        """Begin the means of the test part."""
        super().on_test_epoch_start()
        self._start_means()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the means."""
        self._evaluate(batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the means."""
        self._evaluate(batch)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The most likely next token at every step, (batch, length)."""
        logits, _ = self(batch[0])
        likeliest: Tensor = logits.argmax(-1)
        return likeliest

    def on_validation_epoch_end(self) -> None:
        """Log the means of the validation part."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Log the means of the test part."""
        self._log_means("test")

    def _start_means(self) -> None:
        # Made anew for every pass: nothing is left of one that was interrupted, and the sums keep their type where
        # the model is converted to bfloat16 as a whole. Apple's GPUs have no float64.
        sizes = getattr(self.trainer.datamodule, "token_sizes", None)  # type: ignore[attr-defined]
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        sizes = None if sizes is None else torch.stack(sizes).to(self.device)
        self.means = TokenMeans(sizes, dtype).to(self.device)

    def _evaluate(self, batch: Sequence[Tensor]) -> None:
        inputs, targets = batch
        logits, _ = self(inputs)
        self.means.update(self.loss(logits, targets), targets)

    def _log_means(self, part: str) -> None:
        for name, mean in self.means.compute().items():
            # The metric is in step already; Lightning asks.
            self.log(f"{part}/{name}", mean.float(), prog_bar=name == "loss", sync_dist=True)
