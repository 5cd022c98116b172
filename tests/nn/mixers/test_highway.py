"""minGRU with highway gates against its equations, step by step in float64."""

import pytest
import torch

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.mixers import MinGRUMixer
from minrnn_lightning.testing import check_mixer

DIM = 6


def test_is_its_equations():
    torch.manual_seed(0)
    mixer = MinGRUMixer(DIM, highway=True).double()
    x, reset = torch.randn(2, 9, DIM).double(), torch.zeros(2, 9, dtype=torch.bool)
    reset[1, 4] = True
    w = dict(mixer.named_parameters())
    expected = torch.empty_like(x)
    for row in range(2):
        h = torch.zeros(DIM).double()
        for t in range(9):
            h = torch.zeros(DIM).double() if reset[row, t] else h
            gate, candidate = (w["rnn.weight_ih_l0"] @ x[row, t] + w["rnn.bias_ih_l0"]).chunk(2)
            positive = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
            h = (1 - gate.sigmoid()) * h + gate.sigmoid() * positive
            share = (w["out.weight"] @ x[row, t] + w["out.bias"]).sigmoid()
            expected[row, t] = share * h + (1 - share) * x[row, t]
    torch.testing.assert_close(mixer(x, None, reset)[0], expected)


def test_keeps_the_contract():
    check_mixer(MinGRUMixer, highway=True)


def test_has_as_many_parameters():
    sizes = [
        sum(p.numel() for p in Backbone(16, 2, mixer_args={"mingru": args}).parameters())
        for args in ({}, {"highway": True})
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("options", [{"expansion": 1.5}, {"counters": 0.5}, {"bidirectional": True}])
def test_what_it_is_not_combined_with(options):
    with pytest.raises(InputError, match="highway needs expansion 1, no counters and bidirectional false, got"):
        MinGRUMixer(DIM, highway=True, **options)
