"""How a step is measured: time, in turns with others, peak memory, matrix products; and options of benchmarks."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minrnn_lightning.commands.options import split_commas
from minrnn_lightning.errors import InputError

Step = Callable[[], object]
Seconds = dict[str, list[float]]
DType = Literal["float32", "bfloat16", "float16", "float64"]

GPU_SECONDS = 0.03  # length of a repeat on a GPU
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr when it starts and stops


def time_and_memory(
    steps: Mapping[str, Step],
    repeats: int,
    device: torch.device,
    length: int,
    batch_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Measure every step that can run: once as a warm-up, once for its memory, then timed in turns.

    Args:
        steps: Named steps, each over ``batch_size`` sequences of ``length``.
        repeats: How often each is timed.
        device: Device on which they run.
        length: Time steps of the sequences.
        batch_size: Number of sequences.
        clock: Returns seconds; those that elapse by default.

    Returns:
        A row of a report for each of them.
    """
    able = warm_up(steps)
    peaks = {name: peak_memory(step, device) for name, step in able.items()}
    return [
        measurement(name, length, seconds, batch_size, peaks[name])
        for name, seconds in in_turns(able, repeats, device, clock).items()
    ]


def measurement(name: str, length: int, seconds: list[float], batch_size: int, peak: int) -> dict[str, Any]:
    """A row of a report: times of a step over ``batch_size`` sequences of ``length``, and its peak memory in bytes."""
    return {"name": name, "length": length, **timing(seconds, batch_size * length), "peak_mb": peak / 1e6}


def in_turns(
    steps: Mapping[str, Step],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Seconds of every repeat of every step; the steps take turns, so that a noisy machine disturbs them alike.

    On a GPU a repeat runs a short step several times, as training does, so that the launch of a kernel is counted only
    where it takes longer than the kernel before it.

    Args:
        steps: What to time; every step has run before, see ``warm_up``.
        repeats: How often each is timed.
        device: Device on which they run; a GPU is synchronised before and after each repeat.
        clock: Returns seconds; those that elapse by default.
    """

    def timed(step: Step, runs: int) -> float:
        wait(device)
        start = clock()
        for _ in range(runs):
            step()
        wait(device)
        return (clock() - start) / runs

    runs = dict.fromkeys(steps, 1)
    if device.type == "cuda":
        runs = {name: max(1, round(GPU_SECONDS / timed(step, 1))) for name, step in steps.items()}
    seconds: Seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(timed(step, runs[name]))
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
    """Peak memory of a step in bytes, see ``PeakMemory``."""
    with PeakMemory(device) as memory:
        step()
    return memory.bytes


class PeakMemory:
    """Most bytes of tensors that existed at once inside a ``with`` block, beyond those that existed before it.

    On CUDA that is the allocator's own count. On the CPU it is the running sum of what PyTorch's profiler notes at each
    allocation and release: exact for tensors, also those inside an operator, but blind to what does not come from
    PyTorch's allocator: buffers of oneDNN and NumPy, the graph of autograd, compiled code.

    Args:
        device: Device of the tensors.

    Attributes:
        bytes: The result, after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._profile: Any = profile(profile_memory=True)
            self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._profile.__exit__(kind, error, traceback)
        changes = [event for event in self._profile.kineto_results.events() if event.name() == "[memory]"]
        live = 0
        for change in sorted(changes, key=lambda event: event.start_ns()):
            live += change.nbytes()
            self.bytes = max(self.bytes, live)


def timing(seconds: list[float], tokens: int) -> dict[str, float]:
    """Median and spread in milliseconds, and the median per token in microseconds."""
    median = statistics.median(seconds)
    return {
        "ms": 1e3 * median,
        "ms_min": 1e3 * min(seconds),
        "ms_max": 1e3 * max(seconds),
        "us_per_token": 1e6 * median / tokens,
    }


def ratio(seconds: Seconds, name: str, base: str) -> tuple[float, float, float]:
    """Time of one step as a multiple of another's that took turns with it: median and quartiles over the repeats."""
    ratios = [one / other for one, other in zip(seconds[name], seconds[base], strict=True)]
    low, median, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else 3 * ratios
    return median, low, high


def gradient(outputs: Callable[[], Tensor | list[Tensor]], sources: list[Tensor], ones: Tensor) -> Step:
    """Forward and backward to the sources, from gradients of ones, which all outputs share."""

    def step() -> object:
        made = outputs()
        made = [made] if isinstance(made, Tensor) else made
        return torch.autograd.grad(made, sources, [ones] * len(made))

    return step


class Linears(TorchFunctionMode):
    """Notes the operands of every ``F.linear`` inside a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            x, weight = (operand.detach().to(result.dtype).clone().requires_grad_() for operand in args[:2])
            self.operands.append((x, weight))
        return result

    def forward_products(self, steps: int) -> Step:
        """The matrix products of what was noted, so many times."""

        def run() -> None:
            for _ in range(steps):
                for x, weight in self.operands:
                    F.linear(x, weight)

        return run

    def products(self) -> Step:
        """The matrix products of what was noted: one forward and two backward for each, from a gradient of ones."""
        gradients = [torch.ones_like(F.linear(x, weight)) for x, weight in self.operands]

        def step() -> None:
            for (x, weight), gradient in zip(self.operands, gradients, strict=True):
                torch.autograd.grad(F.linear(x, weight), (x, weight), gradient)

        return step


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1.

    Raises:
        InputError: A size is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, got {size}")


def parse_sizes(option: str, text: str, example: str) -> list[int]:
    """Read ``512``, ``512,2048`` or ``[512,2048]``.

    Args:
        option: Name of the option.
        text: Its value.
        example: A value that is accepted, for the message.

    Raises:
        InputError: There is none, or one is not a whole number of at least 1.
    """
    sizes = split_commas(text)
    if not sizes or not all(size.isdecimal() and int(size) for size in sizes):
        raise InputError(f"{option} must be whole numbers from 1, separated by commas, such as {example}, got {text!r}")
    return list(map(int, sizes))


def parse_lengths(text: str) -> list[int]:
    """The option ``lengths``; see ``parse_sizes``."""
    return parse_sizes("lengths", text, "512,2048")


def parse_choice(option: str, text: str, accepted: Mapping[str, object]) -> list[str]:
    """Read names separated by commas, each of them an accepted one; all of these for an empty text.

    Raises:
        InputError: A name is not accepted.
    """
    names = split_commas(text) or list(accepted)
    for name in names:
        if name not in accepted:
            raise InputError(f"{option} must be some of {','.join(accepted)}, separated by commas, got {name!r}")
    return names


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: This machine does not have it.
    """
    count = torch.cuda.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below
    if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < count):
        return device
    raise InputError(
        f"device must be cpu, or cuda or cuda:N where PyTorch sees a GPU (here it sees {count}), got {name!r}"
    )


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
