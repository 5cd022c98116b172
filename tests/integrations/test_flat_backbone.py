"""``FlatBackbone`` equals its backbone, and zeros are the state before the first step."""

import pytest
import torch
from backbones import BACKBONES, backbone, randomize

from minrnn_lightning.errors import InputError
from minrnn_lightning.integrations.flat_backbone import FlatBackbone
from minrnn_lightning.nn import Backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_equals_the_backbone(name):
    """In one pass, in two, and step by step."""
    torch.manual_seed(0)
    memory = randomize(FlatBackbone(5, backbone(name))).double()
    x, reset = torch.randn(3, 12, 5).double(), torch.rand(3, 12) < 0.2
    expected, _ = memory.backbone(memory.proj(x), None, reset)
    zeros = torch.zeros(3, memory.state_size).double()
    torch.testing.assert_close(memory(x, zeros, reset)[0], expected)
    first, state = memory(x[:, :5], zeros, reset[:, :5])
    second, _ = memory(x[:, 5:], state, reset[:, 5:])
    torch.testing.assert_close(torch.cat([first, second], 1), expected)
    state = zeros
    for t in range(12):
        y_t, state = memory.step(x[:, t], state, reset[:, t])
        torch.testing.assert_close(y_t, expected[:, t])


def test_rows_of_zeros_start_anew():
    torch.manual_seed(0)
    memory = randomize(FlatBackbone(5, backbone("learned start")))
    x = torch.randn(4, 6, 5)
    _, state = memory(x, torch.zeros(4, memory.state_size))
    state[::2] = 0
    reset = torch.zeros(4, 6, dtype=torch.bool)
    reset[::2, 0] = True
    expected, _ = memory(x, torch.where(reset[:, :1], 1.0, state), reset)
    torch.testing.assert_close(memory(x, state)[0], expected)
    torch.testing.assert_close(memory.step(x[:, 0], state)[0], expected[:, 0])


def test_the_learned_state_is_trained():
    memory = FlatBackbone(5, backbone("learned start"))
    memory(torch.randn(2, 3, 5), torch.zeros(2, memory.state_size))[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in memory.parameters())
    assert memory.backbone.blocks[0].mixer.rnn.initial.grad.abs().sum() > 0


def test_states_that_grow_or_do_not_exist():
    with pytest.raises(InputError, match="give attention a window"):
        FlatBackbone(5, Backbone(16, 1, "attention"))
    with pytest.raises(InputError, match="bidirectional"):
        FlatBackbone(5, Backbone(16, 1, mixer_args={"mingru": {"bidirectional": True}}))
