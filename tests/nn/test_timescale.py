"""``timescale`` of the layers, and how soon they fit a sum; ``pytest -s`` prints the losses."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from minrnn_lightning import MinGRU, MinLSTM

UNITS, LONGEST = 9, 256.0


@pytest.mark.parametrize(("cell", "signs"), [(MinGRU, (-1, 0)), (MinLSTM, (1, -1, 0))])
def test_gates_start_with_time_constants_on_a_log_scale(cell, signs):
    torch.manual_seed(0)
    plain = cell(3, UNITS, 2, bidirectional=True)
    torch.manual_seed(0)
    rnn = cell(3, UNITS, 2, bidirectional=True, timescale=LONGEST)
    shift = torch.cat([sign * torch.tensor([2.0**i for i in range(UNITS)]).log() for sign in signs])
    for (name, one), other in zip(plain.named_parameters(), rnn.parameters(), strict=True):
        torch.testing.assert_close(other, one + shift if name.startswith("bias") else one)
    assert repr(rnn) == f"{cell.__name__}(3, {UNITS}, num_layers=2, bidirectional=True, timescale=256.0)"


@pytest.mark.parametrize("cell", [MinGRU, MinLSTM])
def test_units_remember_for_their_time_constants(cell):
    rnn = cell(1, UNITS, timescale=LONGEST, activation="identity").double()
    with torch.no_grad():
        kept = [rnn(torch.zeros(1, 1, 1, dtype=torch.float64), torch.full((1, 1, UNITS), h))[0] for h in (0.0, 1.0)]
    memory = 1 / (1 - (kept[1] - kept[0]).squeeze())
    assert memory[-1] > LONGEST / math.e**2  # a bias starts between −1 and 1, one in each gate
    assert memory[0] < math.e**2 + 1


@pytest.mark.parametrize("cell", [MinGRU, MinLSTM])
def test_copies_keep_it(cell):
    torch.manual_seed(0)
    rnn = cell(3, 4, timescale=64)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert torch.equal(other.bias_ih_l0, rnn.bias_ih_l0)
        torch.manual_seed(0)
        other.reset_parameters()
        assert torch.equal(other.bias_ih_l0, rnn.bias_ih_l0)


@pytest.mark.parametrize("cell", [MinGRU, MinLSTM])
def test_what_is_no_time_constant_is_refused(cell):
    for wrong in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"timescale must be at least 1 step and finite, got {wrong}"):
            cell(3, 4, timescale=wrong)
    with pytest.raises(ValueError, match="timescale=64 needs a bias to add it to, got bias=False"):
        cell(3, 4, bias=False, timescale=64)


def loss_of_a_sum(make, lr):
    """Mean squared error of the sum of 20 numbers after 30 epochs of Adam; its variance is 20/3."""
    torch.manual_seed(0)
    x = torch.rand(512, 20, 1) * 2 - 1
    rnn, head = make(1, 32, batch_first=True), nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr)
    for _ in range(30):
        losses = []
        for rows in torch.randperm(512).split(64):
            loss = nn.functional.mse_loss(head(rnn(x[rows])[0][:, -1]), x[rows].sum(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test_a_sum_is_learnt_with_a_larger_learning_rate_no_activation_and_a_timescale():
    """A sum needs gates that are nearly shut: biases 3 lower than at the start, and Adam moves one by lr a step."""

    def long_identity(*sizes, **options):
        return MinGRU(*sizes, activation="identity", timescale=64, **options)

    layers = {"nn.GRU": nn.GRU, "MinGRU": MinGRU, "MinGRU, identity, timescale 64": long_identity}
    losses = {(name, lr): loss_of_a_sum(make, lr) for name, make in layers.items() for lr in (1e-3, 1e-2)}
    for (name, lr), loss in losses.items():
        print(f"{name:32} lr {lr:5}: loss {loss:.2f}")
    assert losses["MinGRU", 1e-3] > 4
    assert losses["MinGRU", 1e-2] < 0.6
    for lr in (1e-3, 1e-2):
        assert losses["MinGRU, identity, timescale 64", lr] < 0.85 * losses["MinGRU", lr]
