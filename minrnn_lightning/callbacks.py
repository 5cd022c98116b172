"""Lightning callbacks: text samples while a language model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from minrnn_lightning.generate import generate

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextSamples(Callback):
    """Let the model continue a prompt after each validation: into TensorBoard, and printed when training ends.

    The samples draw from a random generator of their own, so that training goes on as it would without them.

    Args:
        prompt: the text to continue.
        max_new_tokens: length of the sample in tokens.
        temperature: as for `minrnn_lightning.generate.generate`.
        top_k: as for `minrnn_lightning.generate.generate`.
        top_p: as for `minrnn_lightning.generate.generate`.
        seed: of the random generator; every sample starts from it, so that samples differ by the weights alone.
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
        if not hasattr(getattr(trainer, "datamodule", None), "tokenizer"):
            raise MisconfigurationException("TextSamples needs a data module with a `tokenizer`, like TextDataModule")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and log; on the first process only, and not where the weights are spread over processes."""
        if trainer.sanity_checking or not trainer.is_global_zero or isinstance(trainer.strategy, FSDPStrategy):
            return
        tokenizer: Tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        device = pl_module.device
        prompt = torch.tensor([tokenizer.encode(self.prompt).ids], device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        tokens = generate(pl_module, prompt, generator=generator, **self.sampling)  # type: ignore[arg-type]
        self.text = self.prompt + tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                markdown = "\n".join("    " + line for line in self.text.splitlines())  # shown as it is
                logger.experiment.add_text("sample", markdown, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last sample."""
        if self.text:
            print(f"\nA sample after {trainer.global_step} steps:\n{self.text}\n", flush=True)
