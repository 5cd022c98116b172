"""Sampling from a language model: the prompt is read in parallel, then every token costs one constant-time step."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from minrnn_lightning.checkpoint import check_fits, read_checkpoint, tokenizer_of
from minrnn_lightning.errors import InputError
from minrnn_lightning.hub import PACKAGE
from minrnn_lightning.memory import peak_memory
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.language_model import EncoderBackboneHead, LanguageModel
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.nn.step_plan import unchanged_modules

if TYPE_CHECKING:
    from minrnn_lightning.tasks import LanguageTask

Item = TypeVar("Item")

COLDEST = 1e-20  # temperatures below it, by which logits could not be divided, take the most probable token as 0 does
LEAST = 1e-30  # of top_p, which is 0 in float32 if it is much smaller, so that no token would be left
SIZES = {"input_size", "output_size"}
TRAINING = {  # hyper-parameters of a task that its model does not depend on
    "lr",
    "weight_decay",
    "warmup",
    "compile",
    "match_parameters",
    "muon_lr",
    "muon_momentum",
    "schedule",
}
CHUNK = 4096  # tokens of the prompt per forward pass, which bounds the memory


def generate(
    task: EncoderBackboneHead,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue token sequences, one token of each at a time.

    Args:
        task: A trained task or ``LanguageModel`` whose outputs are the logits of the next token; put in evaluation mode
            while it samples.
        tokens: The prompts, (batch, length) of int64 with length at least 1, on the task's device.
        max_new_tokens: Number of tokens to generate for each sequence.
        temperature: Divides the logits; 0 always takes the most probable token.
        top_k: Sample among the k most probable tokens only.
        top_p: Sample among the most probable tokens that together reach this probability, in (0, 1].
        generator: Source of randomness, on the task's device; PyTorch's global one if None.

    Yields:
        The next token of each sequence, (batch,) of int64.

    Raises:
        InputError: An argument is out of its range.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise InputError(f"tokens must be (batch, length) with length at least 1, got {tuple(tokens.shape)}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be 0 or a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be in (0, 1], got {top_p}")
    return _generate(task, tokens, max_new_tokens, temperature, top_k, top_p, generator)


class DivergedError(InputError):
    """The logits of a model are not finite."""


@torch.inference_mode()
def _generate(
    task: EncoderBackboneHead,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    training = task.training
    task.eval()
    try:
        state = task.initial_state(tokens.shape[0])
        for chunk in torch.split(tokens, CHUNK, dim=1):
            outputs, state = task(chunk, state)
        logits, unchanged = outputs[:, -1], unchanged_modules()
        for count in range(1, max_new_tokens + 1):
            token = sample(logits, temperature, top_k, top_p, generator)
            yield token
            if count < max_new_tokens:
                with unchanged:
                    logits, state = task.step(token, state)
    finally:
        task.train(training)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token from each row of ``logits`` (batch, output_size); returns (batch,). Arguments as in `generate`.

    Raises:
        DivergedError: A logit is NaN or plus infinity, or a row has no finite one.
    """
    for highest in logits.amax(-1).tolist():  # NaN if one is
        if not math.isfinite(highest):
            raise DivergedError(
                f"the logits of the model hold {highest}, so that no token can be chosen: its training has diverged; "
                "use an earlier checkpoint, or train with a lower learning rate"
            )
    if temperature < COLDEST:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # 0 for the most probable token, which is always kept
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(before >= max(top_p, LEAST), 0.0))
    # The exponential race by which torch.multinomial draws one token too, which checks its input in twice the time.
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)


def load_language_task(path: str | Path) -> tuple[LanguageTask, Tokenizer]:
    """Load a trained task and its vocabulary from a checkpoint alone.

    Args:
        path: The ``.ckpt`` file of a LanguageTask or of a subclass that keeps its architecture.

    Raises:
        CheckpointError: The file cannot be read, or holds no language model of text.
    """
    checkpoint = read_checkpoint(path)
    return _task(checkpoint, path), tokenizer_of(checkpoint, path)


def load_language_model(path: str | Path) -> tuple[EncoderBackboneHead, Tokenizer]:
    """As ``load_language_task``, but without importing Lightning where the checkpoint is that of a ``LanguageTask``.

    Args:
        path: The ``.ckpt`` file, a folder that ``save_pretrained`` wrote, or a model of the Hugging Face Hub.

    Raises:
        CheckpointError: As ``load_language_task``.
    """
    checkpoint = read_checkpoint(path)
    return _plain_model(checkpoint, path) or _task(checkpoint, path), tokenizer_of(checkpoint, path)


def _task(checkpoint: dict[str, Any], path: str | Path) -> LanguageTask:
    from minrnn_lightning.tasks import LanguageTask
    from minrnn_lightning.tasks.load import build_task

    return build_task(checkpoint, path, LanguageTask, "generate text")


def _plain_model(checkpoint: dict[str, Any], path: str | Path) -> LanguageModel | None:
    """The model in a checkpoint; None where only the task can load it, or say what is wrong with it."""
    settings = checkpoint.get("hyper_parameters", {})
    mixer = settings.get("mixer")
    mixers = mixer if isinstance(mixer, list) else [mixer]
    is_known = str(checkpoint.get("task")).removeprefix(PACKAGE) == "LanguageTask"
    if not is_known or any(each not in MIXERS for each in map(str, mixers)):
        return None
    try:
        if settings.keys() - SIZES - TRAINING - signature(Backbone).parameters.keys():
            return None
        model = LanguageModel(settings)
        check_fits(model, checkpoint, path)
        model.load_state_dict(checkpoint["state_dict"])
    except Exception:  # arbitrary settings fail in arbitrary ways
        return None
    return model.eval()


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decode a stream of tokens into text; the bytes of one character may be spread over several tokens.

    Args:
        tokenizer: The vocabulary.
        tokens: The tokens.

    Yields:
        Pieces of text that together are the text of all tokens.
    """
    pending: list[int] = []
    shown = 0  # characters of the pending text that were yielded
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending, skip_special_tokens=False)
        complete = text.rstrip("\N{REPLACEMENT CHARACTER}")  # what follows may be the beginning of a character
        yield complete[shown:]
        shown = len(complete)
        if complete == text or len(pending) == 64:
            yield text[shown:]
            pending, shown = [], 0
    yield tokenizer.decode(pending, skip_special_tokens=False)[shown:]


def report_speed(tokens: Iterable[Item], every: int, start: int = 0) -> Iterator[Item]:
    """Yield the tokens, and print speed and memory to standard error.

    Args:
        tokens: A stream of tokens.
        every: Number of tokens between two lines.
        start: Position of the first token: the length of the prompt.
    """
    began = time.perf_counter()
    for position, token in enumerate(tokens, start + 1):
        yield token
        if position % every == 0:
            now = time.perf_counter()
            speed = every / (now - began)
            peak = peak_memory()
            memory = "" if peak is None else f", peak memory {peak:,.1f} MB"
            print(f"position {position:,}: {speed:,.0f} tokens/s{memory}", file=sys.stderr)
            began = now
