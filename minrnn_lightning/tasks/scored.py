"""``ScoredTask``: answers evaluated by accuracy: raw, scaled by chance, by length, and against a baseline."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from minrnn_lightning.batches import IGNORED, data_facts
from minrnn_lightning.tasks.metrics import Mean, mean_cross_entropy
from minrnn_lightning.tasks.task import Task

GROUPS = 16  # lengths, or ranges of lengths, with a metric of their own


class AccuracyByLength(Metric):
    """Mean accuracy of the examples of each length.

    An example with several answers counts as one, with the fraction of them that are correct.
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
        """For each length, ascending: mean accuracy and number of examples."""
        accuracies, lengths = dim_zero_cat(self.accuracies).cpu(), dim_zero_cat(self.lengths).cpu()
        values, group = torch.unique(lengths, return_inverse=True)
        counts = group.bincount()
        means = group.bincount(accuracies.double()) / counts
        return {n: (mean, count) for n, mean, count in zip(*map(Tensor.tolist, (values, means, counts)), strict=True)}


class ScoredTask(Task):
    """Questions with one correct answer each; subclasses define the positions at which answers are predicted.

    A batch is (inputs, targets, lengths); results are reported by length. ``train/loss`` of each batch is in nats per
    answer. For ``val`` and ``test`` are logged: ``loss``; ``accuracy``, the mean over examples; the same for each
    length as ``accuracy/<length>``, for ranges where there are more than 16 lengths; and where the data module knows
    them, ``scaled_accuracy``, which is 0 for a random guess and 1 for no error, and ``baseline``, the accuracy of a
    trivial rule, which the data module names.

    Attributes:
        accuracy_by_length: The accuracy at each length in the last validation or test.
    """

    accuracy_by_length: dict[int, float]

    @abstractmethod
    def logits_and_targets(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the answers of a batch.

        Returns:
            Logits (answers, output_size), targets int64 (answers,), and the row of the batch to which each answer
            belongs, int64 (answers,).
        """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per answer of (..., output_size) and (...); targets of -100 are left out."""
        return mean_cross_entropy(logits, targets)

    def batch_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Mean loss of the answers of a batch."""
        logits, targets, _ = self.logits_and_targets(batch)
        return self.loss(logits, targets)

    def make_metrics(self) -> dict[str, Metric]:
        """Loss and accuracy."""
        self.by_length = AccuracyByLength()
        self.accuracy_by_length = {}
        return {"loss": Mean(), "accuracy": Mean()}

    def evaluate(self, batch: Sequence[Tensor]) -> None:
        """Add a batch to the metrics."""
        logits, targets, examples = self.logits_and_targets(batch)
        self.metrics["loss"].update(self.loss(logits, targets), (targets != IGNORED).sum())
        counts = examples.bincount(minlength=len(batch[2]))
        correct = examples.bincount((logits.argmax(-1) == targets).float(), minlength=len(batch[2]))
        lengths = batch[2].reshape(len(batch[2]), -1).amax(-1)  # of pairs, that of the longer one
        answered = counts > 0
        accuracies = (correct / counts)[answered]
        self.metrics["accuracy"].update(accuracies.mean(), len(accuracies))
        self.by_length.update(accuracies, lengths[answered])

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The most likely answers, int64 (answers,)."""
        likeliest: Tensor = self.logits_and_targets(batch)[0].argmax(-1)
        return likeliest

    def log_metrics(self, part: str) -> None:
        """Log the scores, including those by length."""
        # Lightning logs metrics of one value only, and the names of these depend on their values: computed here,
        # over all processes, and logged as numbers.
        by_length = self.by_length.compute()
        self.by_length.reset()
        self.accuracy_by_length = {length: accuracy for length, (accuracy, _) in by_length.items()}
        if not by_length:  # no example has an answer, so there is no accuracy
            self.log(f"{part}/loss", self.metrics["loss"], prog_bar=True)
            return
        super().log_metrics(part)
        accuracies, counts = (np.array(column) for column in zip(*by_length.values(), strict=True))
        facts = data_facts(self.trainer)
        scores = {}
        if facts.chance is not None:
            scores["scaled_accuracy"] = (np.average(accuracies, weights=counts) - facts.chance) / (1 - facts.chance)
        if facts.baseline is not None:
            scores["baseline"] = facts.baseline
        lengths = np.array(list(by_length))
        for group in np.array_split(np.arange(len(lengths)), min(GROUPS, len(lengths))):
            first, last = lengths[group[0]], lengths[group[-1]]
            name = f"accuracy/{first}" if first == last else f"accuracy/{first}-{last}"
            scores[name] = np.average(accuracies[group], weights=counts[group])
        for name, score in scores.items():
            # Every process has the same numbers already; without sync_dist Lightning would warn.
            self.log(f"{part}/{name}", torch.as_tensor(score, dtype=torch.float32), sync_dist=True)
