"""``minrnn generate``: continue a text with a trained language model."""

from __future__ import annotations

import sys

from minrnn_lightning.errors import InputError


def generate_command(
    checkpoint: str,
    prompt: str = "",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    batch: int = 1,
    stats: int = 0,
) -> None:
    """Continue a text with a trained language model; everything needed is in the checkpoint.

    Args:
        checkpoint: A .ckpt file that `minrnn fit` wrote, a folder of `minrnn publish`, or user/repository on the Hub.
        prompt: The text to continue; - reads it from standard input; an empty one starts at the beginning of a line.
        max_new_tokens: Number of tokens to generate.
        temperature: Divides the logits: below 1 for likelier tokens, above 1 for more variety, 0 for greedy decoding.
        top_k: Sample among the k most probable tokens only.
        top_p: Sample among the most probable tokens that together reach this probability.
        seed: Seed of the random generator, to generate the same text again.
        batch: Number of texts; a single one is printed as it is generated, several when they are finished.
        stats: Print speed and memory to standard error every so many tokens; 0 for never.

    Raises:
        InputError: An option is out of range or the checkpoint cannot be used.
    """
    import torch

    from minrnn_lightning.data.text.tokenizer import encode
    from minrnn_lightning.generate import generate, load_language_model, report_speed, stream_text

    model, tokenizer = load_language_model(checkpoint)
    text = read_prompt() if prompt == "-" else prompt
    try:
        start = encode(tokenizer, text) if text else tokenizer.encode("\n").ids or [0]
    except InputError as error:
        raise InputError(f"prompt: {error}") from error
    random = torch.Generator()
    random.seed() if seed is None else random.manual_seed(seed)
    tokens = generate(
        model,
        torch.tensor([start] * batch),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=random,
    )
    if stats:
        tokens = report_speed(tokens, stats, len(start))
    if batch == 1:
        print(text, end="", flush=True)
        for piece in stream_text(tokenizer, (int(token) for token in tokens)):
            print(piece, end="", flush=True)
        print()
    else:
        for number, row in enumerate(torch.stack(list(tokens), 1).tolist(), 1):
            print(f"--- {number} of {batch} ---\n{text}{''.join(stream_text(tokenizer, row))}")


def read_prompt() -> str:
    """The text of standard input.

    Raises:
        InputError: It is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise InputError("prompt - is read from standard input, which is closed: give the text itself")
    try:
        text = sys.stdin.read()
        text.encode()  # in Python's UTF-8 mode, other bytes are read as surrogates
    except UnicodeError as error:
        raise InputError("prompt - must be text in UTF-8, and standard input is not: convert it") from error
    return text
