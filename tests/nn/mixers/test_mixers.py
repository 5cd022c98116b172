"""Every mixer keeps the contract, alone and in a backbone: being listed in MIXERS is enough to be tested."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from minrnn_lightning.nn import MIXERS, Backbone
from minrnn_lightning.nn.functional import min_gru
from minrnn_lightning.nn.mixers import Mixer
from minrnn_lightning.testing import CLAUSES, check_mixer

DIM, BATCH, LENGTH = 8, 3, 21
OPTIONS = {  # of mixers, where other code runs than by default
    "signed mingru": {"signed": True, "activation": "identity"},
    "learned mingru": {"learn_initial_state": True},
    "counting mingru": {"counters": 0.5, "activation": "identity"},
    "signed minlstm": {"signed": True, "learn_initial_state": True},
    "unnormalised minlstm": {"normalize": False, "forget_bias": 1.0, "learn_initial_state": True},
    "windowed attention": {"window": 5, "heads": 4, "kv_heads": 2},
}
STACKS = ["mingru, mingru", *map(", ".join, itertools.zip_longest(*[iter(MIXERS)] * 2, fillvalue="mingru"))]
CONVOLUTIONS = {
    "mingru before mlp": {"mlp_kernel_size": 4},
    "lstm before mlp": {"kernel_size": 0, "mlp_kernel_size": 2},
}
MODELS = [*MIXERS, *OPTIONS, *STACKS, *CONVOLUTIONS]
# With these, PyTorch 2.6 exports programs of one length, and does not compile nn.LSTM's kernel.
NEWER = {"deltanet", "gru", "lstm", "matrix_mingru", "s4d", "windowed"}


def maker(model):
    """What makes the mixer alone, or a stack of two with convolution, norm and MLP around each."""
    if model in STACKS:
        return lambda dim: Backbone(dim, 2, model.split(", "), expansion=2, kernel_size=4, mlp_ratio=2)
    if model in CONVOLUTIONS:
        sizes = {"expansion": 2, "mlp_ratio": 2, **CONVOLUTIONS[model]}
        return lambda dim: Backbone(dim, 2, model.split()[0], **sizes)
    return lambda dim: MIXERS[model.split()[-1]](dim, 2.0, **OPTIONS.get(model, {}))


@pytest.mark.parametrize("model", MODELS)
def test_keeps_the_contract(model, monkeypatch):
    if torch.__version__ < "2.7" and NEWER & set(re.split(",? ", model)):
        for name in ("compile", "export"):
            monkeypatch.delitem(CLAUSES, name)
    check_mixer(maker(model))


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=5, unique=True), name=st.sampled_from(MODELS))
def test_any_chunking_gives_the_same(cuts, name):
    torch.manual_seed(0)
    model = maker(name)(DIM).double()
    x, more = torch.randn(BATCH, LENGTH + 5, DIM, dtype=torch.float64).split([LENGTH, 5], 1)
    outputs, state = [], None
    for start, stop in itertools.pairwise([0, *sorted(cuts), LENGTH]):
        y, state = model(x[:, start:stop], state)
        outputs.append(y)
    expected, last = model(x)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(more, state)[0], model(more, last)[0], rtol=1e-9, atol=1e-9)


def test_table_holds_mixers():
    for name, mixer in MIXERS.items():
        assert isinstance(mixer(DIM, 1.0), Mixer), name


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_gates_start_with_spread_time_constants(name):
    mixer = MIXERS[name](64, 1.0, timescale=100.0)
    torch.nn.init.zeros_(mixer.rnn.weight_ih_l0)
    state = torch.ones(1, 64)
    _, after = mixer.step(torch.zeros(1, 64), state)
    bias = mixer.rnn.bias_ih_l0.view(-1, 64)[-1]
    candidate = torch.where(bias >= 0, bias + 0.5, bias.sigmoid())
    forgotten = ((state - after) / (state - candidate)).squeeze(0)
    assert 0.35 < forgotten[0] < 0.65  # about one step
    assert 0.005 < forgotten[-1] < 0.02  # about a hundred


def test_counters_add_up():
    mixer = MIXERS["mingru"](DIM, 2.0, activation="identity", counters=0.25).double()
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    gate, candidate = mixer.rnn(x)
    h = min_gru(gate, candidate, activation="identity").clone()
    h[..., 12:] = ((gate + math.log(1e6)).exp() * candidate).cumsum(1)[..., 12:]
    torch.testing.assert_close(mixer(x)[0], F.linear(h, mixer.out.weight, mixer.out.bias), rtol=1e-3, atol=1e-3)


def test_counters_refuse_float16():
    mixer = MIXERS["mingru"](DIM, 2.0, counters=0.25).half()
    with pytest.raises(ValueError, match="float16 cannot hold the small states of counters"):
        mixer(torch.zeros(BATCH, LENGTH, DIM, dtype=torch.float16))
