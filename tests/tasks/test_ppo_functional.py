"""The equations of PPO against loops in float64 and formulas written out."""

import numpy as np
import pytest
import torch

from minrnn_lightning.tasks.ppo_functional import (
    approximate_kl,
    discounted_returns,
    gae,
    normalized,
    policy_loss,
    value_loss,
)
from minrnn_lightning.tasks.running_moments import divisor, merge, moments, update

BATCH, LENGTH = 5, 64


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_advantages_equal_a_loop(draw, gamma, gae_lambda):
    rewards, values, next_values = draw.normal(size=(3, BATCH, LENGTH))
    ended = draw.random((BATCH, LENGTH)) < 0.1
    expected = np.zeros((BATCH, LENGTH))
    for row in range(BATCH):
        later = 0.0
        for t in reversed(range(LENGTH)):
            later = 0.0 if ended[row, t] else later
            error = rewards[row, t] + gamma * next_values[row, t] - values[row, t]
            later = expected[row, t] = error + gamma * gae_lambda * later
    arguments = [torch.from_numpy(x).float() for x in (rewards, values, next_values)]
    found = gae(*arguments, torch.from_numpy(ended), gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_advantages_with_lambda_one_are_returns_minus_values():
    """Of an episode that ends: the sum of its discounted rewards, which follows without any recursion."""
    rewards, values = torch.rand(1, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    ended = torch.tensor([[False] * 5 + [True]])
    following = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], 1)
    found = gae(rewards, values, following, ended, gamma=0.9, gae_lambda=1.0)
    returns = [sum(0.9 ** (i - t) * rewards[0, i] for i in range(t, 6)) for t in range(6)]
    torch.testing.assert_close(found[0], torch.stack(returns) - values[0])


def test_discounted_returns_equal_a_loop(draw):
    rewards, started, before = (
        draw.normal(size=(BATCH, LENGTH)),
        draw.random((BATCH, LENGTH)) < 0.1,
        draw.normal(size=5),
    )
    expected, total = np.zeros((BATCH, LENGTH)), before.copy()
    for t in range(LENGTH):
        total = np.where(started[:, t], 0.0, total) * 0.97 + rewards[:, t]
        expected[:, t] = total
    arguments = torch.from_numpy(rewards).float(), torch.from_numpy(started), torch.from_numpy(before).float()
    np.testing.assert_allclose(discounted_returns(*arguments, 0.97).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_losses_equal_their_formulas(draw):
    log_ratio, advantages, values, old, returns = draw.normal(size=(5, 40))
    tensors = {
        name: torch.from_numpy(value)
        for name, value in zip(("l", "a", "v", "o", "r"), (log_ratio, advantages, values, old, returns), strict=True)
    }
    terms = []
    for ratio, advantage in zip(np.exp(log_ratio), advantages, strict=True):
        terms.append(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
    assert policy_loss(tensors["l"], tensors["a"], 0.2).item() == pytest.approx(-np.mean(terms))
    assert value_loss(tensors["v"], tensors["r"], tensors["r"], None).item() == pytest.approx(
        0.5 * np.mean((values - returns) ** 2)
    )
    clipped = old + np.clip(values - old, -0.3, 0.3)
    worse = np.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    assert value_loss(tensors["v"], tensors["o"], tensors["r"], 0.3).item() == pytest.approx(0.5 * worse.mean())
    scaled = normalized(tensors["a"])
    assert scaled.mean().abs() < 1e-12
    assert scaled.square().mean().item() == pytest.approx(1, abs=1e-6)


def test_policy_loss_has_no_gradient_beyond_the_clip():
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    policy_loss(log_ratio, torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2).backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[:2].tolist() == [0, 0]
    assert (log_ratio.grad[2:] != 0).all()


def test_divergence_is_that_of_the_distributions():
    old, new = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = (old.exp() * (old - new)).sum()
    actions = torch.multinomial(old.exp(), 400_000, replacement=True, generator=torch.Generator().manual_seed(1))
    assert approximate_kl((new - old)[actions]).item() == pytest.approx(expected.item(), rel=0.02)


def test_merged_moments_are_those_of_all_values(draw):
    parts = [torch.from_numpy(draw.normal(3, 2, size=(n, 3))) for n in (1, 7, 30)]
    total = moments(parts[0])
    for part in parts[1:]:
        total = merge(total, moments(part))
    values = torch.cat(parts)
    assert total[0] == len(values)
    torch.testing.assert_close(total[1], values.mean(0))
    torch.testing.assert_close(total[2], values.var(0, correction=0))


def test_running_moments_with_constant_phases(draw):
    """Components that vary always, never, only at first, and only later, by much and by little."""
    parts = np.zeros((5, 100, 6), np.float32)
    parts[:, :, 0] = draw.normal(3, 2, size=(5, 100))
    parts[:, :, 1] = 7
    parts[0, :, 2] = draw.normal(size=100)
    parts[3, :, 3] = draw.normal(size=100)
    parts[4, :, 4] = 0.01 * draw.normal(size=100)
    parts[2:, :, 5] = 1
    count, mean, std = torch.tensor(0), torch.zeros(6), torch.ones(6)
    for number, part in enumerate(parts, 1):
        update(count, mean, std, [moments(torch.from_numpy(part[:40])), moments(torch.from_numpy(part[40:]))])
        so_far = parts[:number].reshape(-1, 6).astype(float)
        expected = so_far.std(0)
        assert count == len(so_far)
        np.testing.assert_allclose(mean, so_far.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(divisor(std), np.where(expected > 0, expected, 1), rtol=1e-5)
