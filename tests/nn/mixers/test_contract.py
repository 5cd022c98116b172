"""``check_mixer`` passes what keeps the contract, and names the clause that a mixer breaks."""

import pytest
import torch
from torch import nn

from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.mixers import Mixer
from minrnn_lightning.ops import linear_scan, state_dtype
from minrnn_lightning.testing import CLAUSES, check_mixer


class Average(Mixer):
    """h_t = (1 − z_t) · h_{t-1} + z_t · x_t with z_t = σ(W x_t): keeps the contract."""

    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def mix(self, x, state, reset):
        h = linear_scan(*self.coefficients(x), state, reset=reset)
        return h.to(x.dtype), h[:, -1].clone()

    def mix_step(self, x_t, state):
        decay, update = self.coefficients(x_t)
        h = decay * state + update
        return h.to(x_t.dtype), h

    def initial_state(self, batch_size):
        weight = self.gate.weight
        return weight.new_zeros(batch_size, len(weight), dtype=state_dtype(weight.dtype))

    def coefficients(self, x):
        z = torch.sigmoid(self.gate(x)).to(state_dtype(x.dtype))
        return 1 - z, z * x


class StepWithoutReset(Average):
    """The contract of before: ``step`` without ``reset``."""

    def step(self, x_t, state):
        return self.mix_step(x_t, state)


class WrongStep(Average):
    def mix_step(self, x_t, state):
        y, state = super().mix_step(x_t, state)
        return 1.001 * y, state


class ForgetsTheState(Average):
    def mix(self, x, state, reset):
        return super().mix(x, None, reset)


class Delayed(Average):
    def mix(self, x, state, reset):
        before = self.initial_state(len(x)) if state is None else state
        y, state = super().mix(x, state, reset)
        return torch.cat([before.unsqueeze(1), y[:, :-1]], 1), state

    def mix_step(self, x_t, state):
        return state, super().mix_step(x_t, state)[1]


class IgnoresResets(Average):
    def mix(self, x, state, reset):
        return super().mix(x, state, None)


class IgnoresResetsInSteps(Average):
    def step(self, x_t, state, reset=None):
        return super().step(x_t, state)


class NoneForNothing(Average):
    def mix(self, x, state, reset):
        y, h = super().mix(x, None if state is None else state[1], reset)
        return y, (None, h)

    def mix_step(self, x_t, state):
        y, h = super().mix_step(x_t, state[1])
        return y, (None, h)

    def step(self, x_t, state, reset=None):
        _, h = state
        if reset is not None:
            h = h.masked_fill(reset.unsqueeze(1), 0)
        return self.mix_step(x_t, (None, h))

    def initial_state(self, batch_size):
        return None, super().initial_state(batch_size)


class StateOfTheWeights(Average):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size).to(self.gate.weight.dtype)


class UnusedParameter(Average):
    def __init__(self, dim):
        super().__init__(dim)
        self.unused = nn.Parameter(torch.zeros(dim))


class AlwaysFloat32(Average):
    def mix(self, x, state, reset):
        y, state = super().mix(x, state, reset)
        return (y.float() if y.dtype == torch.bfloat16 else y), state


class LooksAtValues(Average):
    def mix(self, x, state, reset):
        return super().mix(x if x.sum() < 1e9 else 0 * x, state, reset)


class Loop(Average):
    def mix(self, x, state, reset):
        state, outputs = self.initial_state(len(x)) if state is None else state, []
        for t in range(x.shape[1]):
            if reset is not None:
                state = state.masked_fill(reset[:, t, None], 0)
            y, state = self.step(x[:, t], state)
            outputs.append(y)
        return torch.stack(outputs, 1), state


class NeedsAStep(Average):
    def forward(self, x, state=None, reset=None):
        return self.mix(x, state, reset)


class HiddenConstant(Average):
    def __init__(self, dim):
        super().__init__(dim)
        self.scale = 0.5 + torch.rand(1).item()

    def coefficients(self, x):
        return super().coefficients(self.scale * x)


BROKEN = {
    "parallel equals step by step": WrongStep,
    "any chunking": ForgetsTheState,
    "causal": Delayed,
    "reset": IgnoresResets,
    "reset of a step": IgnoresResetsInSteps,
    "state layout": NoneForNothing,
    "state types": StateOfTheWeights,
    "gradients": UnusedParameter,
    "bfloat16": AlwaysFloat32,
    "compile": LooksAtValues,
    "export": Loop,
    "empty batches and lengths": NeedsAStep,
    "copies and state_dict": HiddenConstant,
}


@pytest.mark.parametrize("mixer", [Average, StepWithoutReset])
def test_a_mixer_that_keeps_the_contract_passes(mixer):
    check_mixer(mixer)
    check_mixer(lambda dim: Backbone(dim, 2, mixer))


@pytest.mark.parametrize("clause", CLAUSES)
def test_the_broken_clause_is_named(clause):
    with pytest.raises(AssertionError, match=f"^{clause}: "):
        check_mixer(BROKEN[clause])


def test_the_random_numbers_of_the_caller_stay_as_they_are():
    before = torch.get_rng_state()
    check_mixer(Average)
    assert torch.equal(torch.get_rng_state(), before)


def test_arguments_reach_the_constructor():
    with pytest.raises(TypeError, match="windw"):
        check_mixer(Average, windw=3)
