"""Mean and standard deviation of all values so far, from batches of them."""

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
