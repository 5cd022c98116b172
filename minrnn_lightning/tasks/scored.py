"""``ScoredTask``: questions with one right answer, scored by accuracy: raw, scaled, by length, beside a baseline."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.tasks.metrics import Mean, mean_cross_entropy
from minrnn_lightning.tasks.task import Task

GROUPS = 16  # lengths, or ranges of lengths, with a metric of their own


class AccuracyByLength(Metric):
    """Mean accuracy of the examples of each length.

    An example with several answers counts as one, with the share of them that are right.
    """

    full_state_update = False
    accuracies: list[Tensor]
    lengths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("accuracies", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, accuracies: Tensor, lengths: Tensor) -> None:
        """Add examples: accuracies (batch,) between 0 and 1, and lengths (batch,)."""
        self.accuracies.append(accuracies)
        self.lengths.append(lengths)

    def compute(self) -> dict[int, tuple[float, int]]:
        """For each length, rising: mean accuracy and number of examples."""
        accuracies, lengths = dim_zero_cat(self.accuracies).cpu(), dim_zero_cat(self.lengths).cpu()
        values, group = torch.unique(lengths, return_inverse=True)
        counts = group.bincount()
        means = group.bincount(accuracies.double()) / counts
        return {n: (mean, count) for n, mean, count in zip(*map(Tensor.tolist, (values, means, counts)), strict=True)}


class ScoredTask(Task):
    """Questions with one right answer each; subclasses say where the answers are read.

    A batch is (inputs, targets, lengths), the lengths telling the examples apart. Logged: ``train/loss`` of each batch
    in nats per answer; for ``val`` and ``test`` the ``loss``, the ``accuracy`` (mean over examples), the same for
    each length as ``accuracy/<length>`` (for ranges where there are more than 16 lengths); and where the data module
    knows them, ``scaled_accuracy``, which is 0 for a random guess and 1 for no error, and ``baseline``, the
    accuracy of a trivial rule, which the data module names.

    ``accuracy_by_length`` holds the accuracy at each length of the last validation or test.
    """

    accuracy_by_length: dict[int, float]

    @abstractmethod
    def answers(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (answers, output_size), right answers (answers,), and the example each belongs to (answers,)."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per answer of (..., output_size) and (...); targets of -100 are left out."""
        return mean_cross_entropy(logits, targets)

    def batch_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Loss of a batch."""
        logits, targets, _ = self.answers(batch)
        return self.loss(logits, targets)

    def setup(self, stage: str) -> None:
        """Make the metrics."""
        super().setup(stage)
        self.mean_loss = Mean()
        self.by_length = AccuracyByLength()
        self.accuracy_by_length = {}

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self._evaluate(batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self._evaluate(batch)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The likeliest answers, (answers,)."""
        likeliest: Tensor = self.answers(batch)[0].argmax(-1)
        return likeliest

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation set."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test set."""
        self._log_scores("test")

    def _evaluate(self, batch: Sequence[Tensor]) -> None:
        logits, targets, examples = self.answers(batch)
        self.mean_loss.update(self.loss(logits, targets), (targets != IGNORED).sum())
        counts = examples.bincount(minlength=len(batch[2]))
        right = examples.bincount((logits.argmax(-1) == targets).float(), minlength=len(batch[2]))
        lengths = batch[2].reshape(len(batch[2]), -1).amax(-1)  # of pairs, that of the longer one
        asked = counts > 0
        self.by_length.update((right / counts)[asked], lengths[asked])

    def _log_scores(self, part: str) -> None:
        loss, by_length = self.mean_loss.compute(), self.by_length.compute()
        self.mean_loss.reset()
        self.by_length.reset()
        self.accuracy_by_length = {length: accuracy for length, (accuracy, _) in by_length.items()}
        if not by_length:  # nothing was asked
            self.log(f"{part}/loss", loss, prog_bar=True, sync_dist=True)
            return
        accuracies, counts = (np.array(column) for column in zip(*by_length.values(), strict=True))
        accuracy = np.average(accuracies, weights=counts)
        scores = {"loss": loss, "accuracy": accuracy}
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "chance"):
            scores["scaled_accuracy"] = (accuracy - data.chance) / (1 - data.chance)
        if hasattr(data, "baseline"):
            scores["baseline"] = data.baseline
        lengths = np.array(list(by_length))
        for group in np.array_split(np.arange(len(lengths)), min(GROUPS, len(lengths))):
            first, last = lengths[group[0]], lengths[group[-1]]
            name = f"accuracy/{first}" if first == last else f"accuracy/{first}-{last}"
            scores[name] = np.average(accuracies[group], weights=counts[group])
        for name, score in scores.items():
            # The metrics are in step already; Lightning asks.
            score = torch.as_tensor(score, dtype=torch.float32)
            self.log(f"{part}/{name}", score, prog_bar=name in ("loss", "accuracy"), sync_dist=True)
