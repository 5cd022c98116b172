"""How a step is measured: its time in turns with others, the peak of its memory; and the words of the options."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from minrnn_lightning.errors import InputError

Step = Callable[[], object]
Seconds = dict[str, list[float]]
DType = Literal["float32", "bfloat16", "float16", "float64"]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr when it starts and stops


def time_and_memory(
    steps: Mapping[str, Step], repeats: int, device: torch.device, length: int, batch_size: int
) -> list[dict[str, Any]]:
    """A row of a report for every step that can run: untimed once, once for its memory, then timed in turns.

    Args:
        steps: Named steps, each over ``batch_size`` sequences of ``length``.
        repeats: How often each is timed.
        device: Where they run.
        length: Steps of the sequences.
        batch_size: Sequences at once.
    """
    able = warm_up(steps)
    peaks = {name: peak_memory(step, device) for name, step in able.items()}
    return [
        {"name": name, "length": length, **timing(seconds, batch_size * length), "peak_mb": peaks[name] / 1e6}
        for name, seconds in in_turns(able, repeats, device).items()
    ]


def in_turns(steps: Mapping[str, Step], repeats: int, device: torch.device) -> Seconds:
    """Seconds of every repeat of every step; the steps take turns, so that a noisy machine disturbs them alike.

    Args:
        steps: What to time; every step has run before, see ``warm_up``.
        repeats: How often each is timed.
        device: Where they run; a GPU is waited for.
    """
    seconds: Seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def warm_up(steps: Mapping[str, Step]) -> dict[str, Step]:
    """Run every step once, untimed, and return those that can run; a line on stderr says why another cannot."""
    able: dict[str, Step] = {}
    for name, step in steps.items():
        try:
            step()
        except RuntimeError as error:  # a type that an operator lacks, memory that the machine lacks
            print(f"{name} is left out: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        else:
            able[name] = step
    return able


def peak_memory(step: Step, device: torch.device) -> int:
    """Most bytes of tensors that lived at once during a step, beyond those that lived before it.

    On CUDA that is the allocator's own count. On the CPU it is the running sum of what PyTorch's profiler notes at each
    allocation and release: exact for tensors, also those inside an operator, but blind to what does not come from
    PyTorch's allocator: buffers of oneDNN and NumPy, the graph of autograd, compiled code.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as noted:
        step()
    changes = [event for event in noted.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def timing(seconds: list[float], tokens: int) -> dict[str, float]:
    """Median and spread in milliseconds, and the median per token in microseconds."""
    median = statistics.median(seconds)
    return {
        "ms": 1e3 * median,
        "ms_min": 1e3 * min(seconds),
        "ms_max": 1e3 * max(seconds),
        "us_per_token": 1e6 * median / tokens,
    }


def gradient(outputs: Callable[[], Tensor | list[Tensor]], sources: list[Tensor], ones: Tensor) -> Step:
    """Forward and backward to the sources, from gradients of ones, which all outputs share."""

    def step() -> object:
        made = outputs()
        made = [made] if isinstance(made, Tensor) else made
        return torch.autograd.grad(made, sources, [ones] * len(made))

    return step


def check_sizes(**sizes: int) -> None:
    """Refuse a size below one."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")


def parse_lengths(text: str) -> list[int]:
    """The numbers in ``512``, ``512,2048`` or ``[512,2048]``."""
    words = parse_words(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise InputError(f"lengths are whole numbers from 1, separated by commas, as in 512,2048; got {text!r}")
    return [int(word) for word in words]


def parse_words(text: str) -> list[str]:
    """The words between commas."""
    return text.strip("[] ").replace(",", " ").split()


def parse_choice(option: str, text: str, accepted: Mapping[str, object]) -> list[str]:
    """The words of an option, each of them among those accepted; all of these for an empty text."""
    words = parse_words(text) or list(accepted)
    for word in words:
        if word not in accepted:
            raise InputError(f"{option} has no {word!r}; it can be some of {','.join(accepted)}")
    return words


def parse_device(name: str) -> torch.device:
    """The device of that name, if this machine has it."""
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < count):
        return device
    raise InputError(
        f"device is {name!r}; it can be cpu, or cuda or cuda:N where PyTorch sees a GPU, and here it sees {count}"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
