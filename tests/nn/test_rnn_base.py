"""The layers as ``nn.RNNBase``s, masked padding, resets of single steps, and one type of state."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from minrnn_lightning import MinGRU, MinLSTM

every_class = pytest.mark.parametrize("cell", [MinGRU, MinLSTM])


class Flexible(nn.RNNBase):
    """A mixin written for any of nn's recurrent layers."""

    def forward(self, x, hx=None):
        return super().forward(x, hx)


@every_class
def test_is_an_rnnbase_and_takes_mixins(cell):
    mixed = type("Mixed", (Flexible, cell), {})(input_size=3, hidden_size=4, num_layers=np.int64(2), batch_first=True)
    plain = cell(3, 4, 2, batch_first=True)
    assert isinstance(plain, nn.RNNBase)
    assert (plain.mode, plain.proj_size, mixed.num_layers) == (cell.__name__, 0, 2)
    assert cell(3, 4, proj_size=0).proj_size == 0
    plain.load_state_dict(mixed.state_dict())
    x = torch.randn(2, 5, 3)
    assert torch.equal(mixed(x)[0], plain(x)[0])


@every_class
def test_weights_follow_copies_types_and_assignments(cell):
    rnn, x = cell(3, 4, 2, bidirectional=True, learn_initial_state=True), torch.randn(5, 2, 3)
    replica = rnn._replicate_for_data_parallel()
    for name, parameter in rnn.named_parameters():
        setattr(replica, name, parameter.detach().clone())  # as DataParallel does
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert torch.equal(other(x)[0], rnn(x)[0])
    # Its weights do not lie one behind the other: products of other sizes, which Intel's library rounds otherwise.
    torch.testing.assert_close(replica(x)[0], rnn(x)[0], rtol=1e-6, atol=1e-6)
    rnn.double()
    rnn.weight_ih_l0 = nn.Parameter(rnn.weight_ih_l0.detach() * 2)
    names = [name for name, _ in rnn.named_parameters() if name != "initial"]
    assert rnn._flat_weights_names == names
    assert all(mine is rnn.get_parameter(name) for mine, name in zip(rnn._flat_weights, names, strict=True))
    assert rnn(x.double())[0].dtype == torch.float64


@every_class
def test_a_float64_state_is_refused_as_in_gru(cell):
    x, h_0 = torch.randn(5, 2, 3), torch.zeros(1, 2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        nn.GRU(3, 4)(x, h_0)
    with pytest.raises(RuntimeError, match="h_0 must be at most float32, the type of the state, for weights of"):
        cell(3, 4)(x, h_0)


@pytest.mark.parametrize("options", [{}, {"signed": True}, {"learn_initial_state": True}])
@pytest.mark.parametrize("bidirectional", [False, True])
@every_class
def test_masked_equals_packed(cell, bidirectional, options):
    torch.manual_seed(0)
    rnn = cell(3, 4, 2, batch_first=True, bidirectional=bidirectional, **options).double()
    x, lengths = torch.randn(4, 7, 3, dtype=torch.float64), torch.tensor([7, 2, 5, 1])
    h_0 = torch.rand(2 * (1 + bidirectional), 4, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    mask = torch.arange(7) < lengths.unsqueeze(1)
    for start in (h_0, None):
        expected, h_n = rnn(packed, start)
        output, final = rnn(x, start, mask=mask)
        torch.testing.assert_close(final, h_n)
        expected = pad_packed_sequence(expected, batch_first=True)[0]
        torch.testing.assert_close(output * mask.unsqueeze(-1), expected)


@every_class
def test_padding_anywhere_is_as_if_it_were_not_there(cell):
    rnn, x = cell(3, 4, bidirectional=True), torch.randn(6, 1, 3)
    mask = torch.tensor([False, True, True, False, False, True])
    output, h_n = rnn(x, mask=mask.unsqueeze(1))
    expected, final = rnn(x[mask])
    torch.testing.assert_close((output[mask], h_n), (expected, final))
    torch.testing.assert_close(rnn(x[:, 0], mask=mask)[0], output[:, 0])


@every_class
def test_a_mask_that_does_not_fit_is_refused(cell):
    rnn, x = cell(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match=r"Expected mask to be bool of shape \(5, 2\), got torch.float32"):
        rnn(x, mask=torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"Expected mask to be bool of shape \(5, 2\), got .* of shape \(2, 5\)"):
        rnn(x, mask=torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("learned", [False, True])
@every_class
def test_steps_with_resets_equal_the_sequence(cell, learned):
    torch.manual_seed(0)
    rnn = cell(3, 4, 2, batch_first=True, learn_initial_state=learned).double()
    x, reset = torch.randn(4, 9, 3, dtype=torch.float64), torch.rand(4, 9) < 0.3
    h = h_0 = torch.rand(2, 4, 4, dtype=torch.float64)
    expected, h_n = rnn(x, h_0, reset=reset)
    outputs = []
    for t in range(9):
        output_t, h = rnn.step(x[:, t], h, reset=reset[:, t])
        outputs.append(output_t)
    torch.testing.assert_close((torch.stack(outputs, 1), h), (expected, h_n))
    alone = rnn.step(x[0, 0], h_0[:, 0], reset=torch.tensor(True))[0]
    torch.testing.assert_close(alone, rnn.step(x[:1, 0])[0][0])
    with pytest.raises(ValueError, match=r"step: Expected reset to be bool of shape \(4,\)"):
        rnn.step(x[:, 0], h, reset=reset)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("learned", [False, True])
@every_class
def test_states_are_float32_at_least_and_h_n_has_the_type_of_the_output(cell, learned, dtype, wide):
    rnn, x = cell(3, 4, learn_initial_state=learned, dtype=dtype), torch.randn(5, 2, 3, dtype=dtype)
    h_0 = rnn.initial_state(2)
    assert h_0.dtype == rnn.step(x[0], h_0)[1].dtype == wide
    output, h_n = rnn(x, h_0)
    assert output.dtype == h_n.dtype == dtype
    assert torch.equal(output, rnn(x)[0])


@every_class
def test_is_a_leaf_of_fx_as_gru_is(cell):
    class Model(nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.rnn, self.head = rnn, nn.Linear(4, 2)

        def forward(self, x):
            output, h_n = self.rnn(x)
            return self.head(output), h_n

    x = torch.randn(7, 3, 3)
    for rnn in (nn.GRU(3, 4), cell(3, 4)):
        model = Model(rnn)
        traced = torch.fx.symbolic_trace(model)
        assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["rnn", "head"]
        assert traced.get_submodule("rnn") is rnn
        torch.testing.assert_close(traced(x), model(x))


def test_torchrl_takes_it_for_gru():
    """A step at a time, and padded trajectories at once, for which TorchRL passes ``mask``."""
    torchrl = pytest.importorskip("torchrl.modules", reason="needs torchrl")
    tensordict = pytest.importorskip("tensordict")
    torch.manual_seed(0)
    module = torchrl.GRUModule(gru=MinGRU(3, 4, batch_first=True), in_keys=["x", "h"], out_keys=["y", ("next", "h")])
    x, is_init = torch.randn(2, 6, 3), torch.zeros(2, 6, 1, dtype=torch.bool)
    is_init[:, 0] = is_init[0, 3] = True
    h, steps = torch.zeros(2, 1, 4), []
    for t in range(6):
        step = module(tensordict.TensorDict({"x": x[:, t], "h": h, "is_init": is_init[:, t]}, [2]))
        steps.append(step["y"])
        h = step["next", "h"]
    padded = tensordict.TensorDict({"x": x, "h": torch.zeros(2, 6, 1, 4), "is_init": is_init}, [2, 6])
    with torchrl.set_recurrent_mode(True):
        torch.testing.assert_close(module(padded)["y"], torch.stack(steps, 1))
