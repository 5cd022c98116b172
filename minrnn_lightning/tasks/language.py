"""Language modelling: predict the next token at every step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from minrnn_lightning.batches import IGNORED, TextBatch, data_facts
from minrnn_lightning.tasks.metrics import Mean, Perplexity, mean_cross_entropy
from minrnn_lightning.tasks.sequence import SequenceTask


class LanguageTask(SequenceTask):
    """Next-token prediction over batches (inputs, targets) of tokens, int64 (batch, length) each.

    A target of -100 is padding and is ignored. ``train/loss`` is the mean over the real targets of a batch, in nats per
    token. For ``val`` and ``test`` these are logged, over all real targets of all batches and processes:

    - ``loss``: nats per token,
    - ``perplexity``: its exponential,
    - ``bits_per_character`` and ``bits_per_byte``: all nats in bits, divided by the characters of the targets and by
      their bytes in UTF-8. These compare across vocabularies. They are logged where the data module knows the sizes
      of its tokens, as ``TextDataModule.token_sizes``,
    - ``word_perplexity``: the exponential of all nats divided by the words of the targets, where the data module knows
      how many begin in its tokens, as ``CorpusDataModule.token_words``.

    All of these are NaN if the loss of any real target is.
    """

    batch_type = TextBatch

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per real target, of (batch, length, output_size) and (batch, length).

        It is 0 where there is none, so that a batch of padding alone has no effect.
        """
        return mean_cross_entropy(logits, targets)

    def make_metrics(self) -> dict[str, Metric]:
        """Loss and perplexity, and bits per character and byte where the sizes of the tokens are known."""
        facts = data_facts(self._trainer)
        sizes, words = facts.token_sizes, facts.token_words
        units = [] if sizes is None else [*sizes] if words is None else [*sizes, words]
        # int64 (units, input_size): characters, bytes, words
        self.token_sizes = None if sizes is None else torch.stack(units)
        metrics: dict[str, Metric] = {"loss": Mean(), "perplexity": Perplexity()}
        if sizes is not None:
            metrics |= {"bits_per_character": Mean(), "bits_per_byte": Mean()}
        if len(units) == 3:
            metrics["word_perplexity"] = Perplexity()
        return metrics

    def evaluate(self, batch: Sequence[Tensor]) -> None:
        """Add a batch to the metrics."""
        logits, targets = self.logits(batch), batch[1]
        loss, real = self.loss(logits, targets), targets != IGNORED
        count = real.sum()
        self.metrics["loss"].update(loss, count)
        self.metrics["perplexity"].update(loss, count)
        if self.token_sizes is not None:
            self.token_sizes = self.token_sizes.to(targets.device)
            characters, bytes_, *words = (self.token_sizes[:, targets.where(real, 0)] * real).flatten(1).sum(1)
            self.metrics["bits_per_character"].update(loss / math.log(2), count, characters)
            self.metrics["bits_per_byte"].update(loss / math.log(2), count, bytes_)
            if words:
                self.metrics["word_perplexity"].update(loss, count, words[0])

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The most likely next token at every step, int64 (batch, length)."""
        likeliest: Tensor = self.logits(batch).argmax(-1)
        return likeliest
