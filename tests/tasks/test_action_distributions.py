"""Distributions of actions against those of ``torch.distributions``, and the frequencies of samples."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from minrnn_lightning.tasks.action_distributions import CategoricalActions, GaussianActions


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("sizes", [[4], [2, 3, 5]], ids=str)
def test_categorical(sizes):
    actions = CategoricalActions(sizes)
    logits = torch.randn(6, 7, sum(sizes), generator=generator())
    chosen = actions.sample(logits, actions.noise(logits.shape, generator()))
    assert chosen.shape == (6, 7) if len(sizes) == 1 else (6, 7, len(sizes))
    parts = [Categorical(logits=part) for part in logits.split(sizes, -1)]
    each = [chosen] if len(sizes) == 1 else list(chosen.unbind(-1))
    log_prob = sum(part.log_prob(action) for part, action in zip(parts, each, strict=True))
    torch.testing.assert_close(actions.log_prob(logits, chosen), log_prob)
    torch.testing.assert_close(actions.entropy(logits), sum(part.entropy() for part in parts))


def test_frequencies_of_samples_are_the_probabilities():
    actions = CategoricalActions([3])
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(200_000, 3)
    chosen = actions.sample(logits, actions.noise(logits.shape, generator()))
    torch.testing.assert_close(chosen.bincount() / len(chosen), logits[0].softmax(-1), rtol=0, atol=5e-3)


def test_gaussian():
    actions = GaussianActions(3)
    actions.log_std.data.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    mean = torch.randn(200_000, 3, generator=generator()) * 0 + torch.tensor([0.1, -0.2, 0.3])
    chosen = actions.sample(mean, actions.noise(mean.shape, generator()))
    reference = Independent(Normal(mean, actions.log_std.detach().exp()), 1)
    torch.testing.assert_close(actions.log_prob(mean, chosen), reference.log_prob(chosen))
    torch.testing.assert_close(actions.entropy(mean), reference.entropy())
    torch.testing.assert_close(chosen.mean(0), mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(chosen.std(0), actions.log_std.detach().exp(), rtol=0.02, atol=0)


def test_actions_of_the_environment_are_within_its_bounds_in_its_units():
    actions = GaussianActions(2)
    actions.bounds.set([-2.0, 0.0], [2.0, 10.0])
    assert actions.to_environment(torch.tensor([[-1.0, 1.0], [0.0, 0.0]])).tolist() == [[-2.0, 10.0], [0.0, 5.0]]
