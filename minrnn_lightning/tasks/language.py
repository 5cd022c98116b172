"""Language modelling: predict the next token at every step."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from minrnn_lightning.tasks.task import Task


class LanguageTask(Task):
    """Next-token prediction over batches (inputs, targets) of tokens, (batch, length) each.

    Logged: ``train/loss`` of each batch in nats per token; for ``val`` and ``test`` over all tokens the ``loss``, the
    ``perplexity`` (its exponential) and ``bits_per_character`` (bits per token, where a token is a character).
    """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, of (batch, length, output_size) and (batch, length)."""
        return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())

    def setup(self, stage: str) -> None:
        """Make the mean over all held-out tokens."""
        super().setup(stage)
        self.mean_loss = MeanMetric()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the mean."""
        self._evaluate(batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the mean."""
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

    def _evaluate(self, batch: Sequence[Tensor]) -> None:
        inputs, targets = batch
        logits, _ = self(inputs)
        self.mean_loss.update(self.loss(logits, targets), weight=targets.numel())

    def _log_means(self, part: str) -> None:
        loss = self.mean_loss.compute()
        self.mean_loss.reset()
        self.log(f"{part}/loss", loss, prog_bar=True, sync_dist=True)  # the metric is in step already; Lightning asks
        self.log(f"{part}/perplexity", loss.exp(), sync_dist=True)
        self.log(f"{part}/bits_per_character", loss / math.log(2), sync_dist=True)
