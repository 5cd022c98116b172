"""``check_mixer`` passes what keeps the contract, and names the clause that a mixer breaks."""

import pytest
import torch
from torch import nn

from minrnn_lightning.nn.mixers import Mixer
from minrnn_lightning.ops import linear_scan
from minrnn_lightning.testing import CLAUSES, check_mixer


class Average(Mixer):
    """h_t = (1 − z_t) · h_{t-1} + z_t · x_t with z_t = σ(W x_t): keeps the contract."""

    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def mix(self, x, state, reset):
        h = linear_scan(*self.coefficients(x), state, reset=reset)
        return h.to(x.dtype), h[:, -1].clone()

    def step(self, x_t, state):
        decay, update = self.coefficients(x_t)
        h = decay * state + update
        return h.to(x_t.dtype), h

    def initial_state(self, batch_size):
        return self.gate.weight.new_zeros(batch_size, self.gate.in_features)

    def coefficients(self, x):
        z = torch.sigmoid(self.gate(x))
        return 1 - z, z * x


class WrongStep(Average):
    def step(self, x_t, state):
        y, state = super().step(x_t, state)
        return 1.001 * y, state


class ForgetsTheState(Average):
    def mix(self, x, state, reset):
        return super().mix(x, None, reset)


class Delayed(Average):
    def mix(self, x, state, reset):
        before = self.initial_state(len(x)) if state is None else state
        y, state = super().mix(x, state, reset)
        return torch.cat([before.unsqueeze(1), y[:, :-1]], 1), state

    def step(self, x_t, state):
        return state, super().step(x_t, state)[1]


class IgnoresResets(Average):
    def mix(self, x, state, reset):
        return super().mix(x, state, None)


class WideInitialState(Average):
    def initial_state(self, batch_size):
        return super().initial_state(batch_size).double()


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
    "state layout": WideInitialState,
    "gradients": UnusedParameter,
    "bfloat16": AlwaysFloat32,
    "compile": LooksAtValues,
    "export": Loop,
    "empty batches and lengths": NeedsAStep,
    "copies and state_dict": HiddenConstant,
}


def test_a_mixer_that_keeps_the_contract_passes():
    check_mixer(Average)


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
