"""The equations of PPO as functions of tensors: advantages, the clipped losses, and the divergence of two policies.

Sources: generalised advantage estimation, Schulman et al. 2015, https://arxiv.org/abs/1506.02438 (GAE); proximal policy
optimisation, Schulman et al. 2017, https://arxiv.org/abs/1707.06347 (PPO); what implementations add, Huang et al. 2022,
"The 37 Implementation Details of PPO",
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/ (details).
"""

import torch
from torch import Tensor

from minrnn_lightning.ops import linear_scan


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Advantages A_t = δ_t + γλ·A_{t+1} with δ_t = r_t + γ·V'_t − V_t (GAE, equations 11 to 16).

    The sum stops where an episode ends. All arguments and the result are (batch, length).

    Args:
        rewards: r_t.
        values: V_t, of the state in which the action was taken.
        next_values: V'_t, of the state after it: 0 where the episode terminated, and the value of its last state where
            it was truncated, because it might have gone on.
        ended: Bool, whether the episode ended with the step, either way.
        gamma: Discount of later rewards.
        gae_lambda: Weight of longer estimates: less bias, more variance.
    """
    delta = rewards + gamma * next_values - values
    decay = gamma * gae_lambda * (~ended).to(delta.dtype)
    return linear_scan(decay.unsqueeze(-1), delta.unsqueeze(-1), reverse=True).squeeze(-1)


def discounted_returns(rewards: Tensor, started: Tensor, before: Tensor, gamma: float) -> Tensor:
    """Discounted sums of past rewards R_t = γ·R_{t−1} + r_t, whose deviation scales rewards.

    Args:
        rewards: (batch, length).
        started: Bool (batch, length), True at the first step of an episode, before which the sum is 0.
        before: The last sums of the rewards before, (batch,).
        gamma: Discount.

    Returns:
        (batch, length).
    """
    decay = torch.full_like(rewards, gamma).unsqueeze(-1)
    return linear_scan(decay, rewards.unsqueeze(-1), before.unsqueeze(-1), reset=started).squeeze(-1)


def policy_loss(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−mean(min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A)) with the ratio ρ of the new to the old probability (PPO, equation 7)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """½·mean((V − R)²), or of the larger error of V and of V at most ε away from the old one (detail 9)."""
    errors = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - returns).square())
    return errors.mean() / 2


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """mean(ρ − 1 − log ρ), an estimate of KL(old, new) without bias (detail 12; http://joschu.net/blog/kl-approx.html)."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def normalized(advantages: Tensor) -> Tensor:
    """Advantages with mean 0 and deviation 1 over the minibatch (detail 7)."""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
