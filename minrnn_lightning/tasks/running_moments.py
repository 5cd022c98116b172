"""Mean and standard deviation of all values so far, from batches of them."""

from collections.abc import Iterable

import torch
from torch import Tensor

Moments = tuple[Tensor, Tensor, Tensor]  # number, mean and variance, float64


def moments(values: Tensor) -> Moments:
    """Number, mean and variance of values (items, size), the last two (size,)."""
    values = values.double()
    return torch.tensor(float(len(values)), dtype=torch.float64), values.mean(0), values.var(0, correction=0)


def merge(one: Moments, other: Moments) -> Moments:
    """The moments of two sets of values together (Chan, Golub and LeVeque 1979)."""
    (n, mean, variance), (m, other_mean, other_variance) = one, other
    total = n + m
    difference = other_mean - mean
    return (
        total,
        mean + difference * m / total,
        (n * variance + m * other_variance + difference.square() * n * m / total) / total,
    )


def update(count: Tensor, mean: Tensor, std: Tensor, parts: Iterable[Moments]) -> None:
    """Add values to moments in place.

    Args:
        count: Number of values so far, int64 ().
        mean: Their mean, (size,).
        std: Their standard deviation, (size,); anything where there are no values.
        parts: Moments of the new values, on the CPU.
    """
    total: Moments = (count.cpu().double(), mean.cpu().double(), std.cpu().double().square())
    for part in parts:
        total = merge(total, part) if total[0] else part
    count.copy_(total[0])
    mean.copy_(total[1])
    std.copy_(total[2].sqrt())


def divisor(std: Tensor) -> Tensor:
    """What to divide values by: their standard deviation, or 1 where it is at most 1e-6, that of constants."""
    return std.masked_fill(std <= 1e-6, 1.0)
