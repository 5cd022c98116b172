"""Text that a language model generates after each validation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.batches import data_facts
from minrnn_lightning.callbacks.media import log_text
from minrnn_lightning.data.text.tokenizer import encode
from minrnn_lightning.errors import InputError
from minrnn_lightning.generate import DivergedError, generate

SPREAD = (FSDPStrategy, ModelParallelStrategy)  # strategies that divide the weights among processes


class TextSamples(Callback):
    """Continues a prompt after each validation; logged to TensorBoard, W&B or MLflow, and printed when training ends.

    The samples have their own random generator, so that they do not change the training.

    Args:
        prompt: The text to continue; where the vocabulary lacks one of its characters, the first token instead.
        max_new_tokens: Length of the sample in tokens.
        temperature: As for `minrnn_lightning.generate.generate`.
        top_k: As for `minrnn_lightning.generate.generate`.
        top_p: As for `minrnn_lightning.generate.generate`.
        seed: Of the random generator; every sample starts from it, so that samples differ by the weights alone.
    """

    def __init__(
        self,
        prompt: str = "\n",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        self.prompt = prompt
        self.seed = seed
        self.sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        self.text = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a data module that has no vocabulary before the training starts."""
        if data_facts(trainer).tokenizer is None:
            raise MisconfigurationException("TextSamples needs a data module with a `tokenizer`, like TextDataModule")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and log; on the first process only, and not where the weights are spread over processes."""
        if trainer.sanity_checking or not trainer.is_global_zero or isinstance(trainer.strategy, SPREAD):
            return
        tokenizer = data_facts(trainer).tokenizer
        try:
            prompt = encode(tokenizer, self.prompt) or [0]
        except InputError:  # the vocabulary is not that of the recipe
            prompt = [0]
        device = pl_module.device
        generator = torch.Generator(device).manual_seed(self.seed)
        tokens = generate(pl_module, torch.tensor([prompt], device=device), generator=generator, **self.sampling)  # type: ignore[arg-type]
        try:
            self.text = tokenizer.decode([*prompt, *map(int, tokens)], skip_special_tokens=False)
        except DivergedError as error:
            rank_zero_warn(f"No sample of text after step {trainer.global_step}: {error}")
            self.text = ""
            return
        for logger in trainer.loggers:
            log_text(logger, "sample", self.text, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last sample."""
        if self.text:
            print(f"\nA sample after {trainer.global_step} steps:\n{self.text}\n", flush=True)
