"""MinGRU and MinLSTM in place of nn.GRU: same calls, shapes, attributes, errors, and a model with one word replaced."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from minrnn_lightning.nn import MinGRU, MinLSTM

every_class = pytest.mark.parametrize("cell", [MinGRU, MinLSTM])

LANGUAGE_MODEL = """
class Model(nn.Module):
    def __init__(self, vocabulary, size, layers):
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, size)
        self.rnn = nn.GRU(size, size, layers, dropout=0.1)
        self.decoder = nn.Linear(size, vocabulary)

    def forward(self, tokens, hidden):
        self.rnn.flatten_parameters()
        output, hidden = self.rnn(self.encoder(tokens), hidden)
        output = output.view(tokens.size(0) * tokens.size(1), self.rnn.hidden_size)
        return self.decoder(output), hidden

    def init_hidden(self, batch):
        return next(self.parameters()).new_zeros(self.rnn.num_layers, batch, self.rnn.hidden_size)
"""


@pytest.mark.parametrize("name", ["nn.GRU", "MinGRU", "MinLSTM"])
def test_a_model_written_for_gru_works_with_one_word_replaced(name):
    torch.manual_seed(0)
    scope = {"nn": nn, "MinGRU": MinGRU, "MinLSTM": MinLSTM}
    exec(LANGUAGE_MODEL.replace("nn.GRU", name), scope)
    model = scope["Model"](11, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    text, hidden, losses = torch.arange(61).view(-1, 1).expand(-1, 4) * 3 % 11, model.init_hidden(4), []
    for step in range(30):
        piece = text[step % 6 * 10 :][:11]
        logits, hidden = model(piece[:-1], hidden.detach())
        losses.append(nn.functional.cross_entropy(logits, piece[1:].reshape(-1)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def shapes(rnn, x, hx=None):
    output, h_n = rnn(x, hx)
    return output.shape, output.is_contiguous(), h_n.shape, output.dtype, h_n.dtype


@every_class
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_shapes_are_those_of_gru(cell, bidirectional, batch_first, layers):
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
    mine, theirs = cell(3, 5, **options), nn.GRU(3, 5, **options)
    for x in (torch.randn(4, 2, 3), torch.randn(4, 3), torch.randn(1, 1, 3)):
        (out, contiguous, *rest), (expected, required, *others) = shapes(mine, x), shapes(theirs, x)
        assert (out, rest) == (expected, others)
        assert contiguous or not required
    packed, h_0 = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), torch.randn(layers * (1 + bidirectional), 2, 5)
    assert mine(packed, h_0)[0].data.shape == theirs(packed, h_0)[0].data.shape


@every_class
def test_the_smallest_sequences(cell):
    assert cell(3, 5, 2)(torch.randn(1, 2, 3))[0].shape == (1, 2, 5)
    assert cell(3, 5, 2)(torch.randn(4, 0, 3))[1].shape == (2, 0, 5)


X, H = torch.randn(4, 2, 3), torch.randn(2, 2, 5)
BAD_CALLS = {
    "1-D input": (X[0, 0],),
    "4-D input": (X[None],),
    "features": (torch.randn(4, 2, 7),),
    "unbatched features": (torch.randn(4, 7),),
    "type": (X.double(),),
    "length zero": (torch.randn(0, 0, 3),),
    "2-D state for 3-D input": (X, H[:, 0]),
    "3-D state for 2-D input": (X[:, 0], H),
    "batch of the state": (X, torch.randn(2, 4, 5)),
    "layers of the state": (X, H[:1]),
    "size of the state": (X, torch.randn(2, 2, 6)),
    "unbatched state": (X[:, 0], torch.randn(2, 6)),
    "packed features": (pack_sequence([torch.randn(2, 7)]),),
    "packed dimensions": (pack_sequence([torch.randn(2, 3, 3)]),),
    "packed type": (pack_sequence([torch.randn(2, 3).double()]),),
    "packed state": (pack_sequence([X[:, 0], X[:2, 0]]), torch.randn(2, 4, 5)),
}


@every_class
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_calls_fail_as_in_gru(cell, call, batch_first):
    if batch_first and len(call) == 2 and call[0] is X:
        call = X.transpose(0, 1), call[1]
    with pytest.raises((ValueError, RuntimeError)) as expected:
        nn.GRU(3, 5, 2, batch_first=batch_first)(*call)
    with pytest.raises(expected.type) as actual:
        cell(3, 5, 2, batch_first=batch_first)(*call)
    assert str(actual.value) == str(expected.value).replace("GRU:", f"{cell.__name__}:")


BAD_ARGUMENTS = [
    {"dropout": 1.5},
    {"dropout": -0.1},
    {"dropout": True},
    {"dropout": "0.1"},
    {"bias": 1},
    {"batch_first": None},
    {"input_size": 2.0},
    {"input_size": 0},
    {"hidden_size": "5"},
    {"hidden_size": -1},
    {"num_layers": 0},
    {"proj_size": 2},
]


@every_class
@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_fail_as_in_gru(cell, bad):
    arguments = {"input_size": 3, "hidden_size": 5, **bad}
    with pytest.raises((ValueError, TypeError)) as expected:
        nn.GRU(**arguments)
    with pytest.raises(expected.type) as actual:
        cell(**arguments)
    assert str(actual.value) == str(expected.value)


@every_class
def test_bad_calls_that_gru_does_not_know(cell):
    rnn, reset = cell(3, 5, 2), torch.zeros(4, 2, dtype=torch.bool)
    for bad in (reset.T, reset[:, 0], reset.float()):
        with pytest.raises(ValueError, match=r"Expected reset to be bool of shape \(4, 2\), got torch"):
            rnn(X, reset=bad)
    with pytest.raises(ValueError, match="reset and delta_t need padded input"):
        rnn(pack_sequence([X[:, 0]]), reset=reset)
    with pytest.raises(TypeError, match="no cell state"):
        rnn(X, (H, H))
    with pytest.raises(ValueError, match="Expected input_t to be 1D or 2D, got 3D"):
        rnn.step(X)
    with pytest.raises(RuntimeError, match="For 2-D input_t, h should be 3-D but got 2-D tensor"):
        rnn.step(X[0], H[0])
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(2, 2, 5\), got \[2, 3, 5\]"):
        rnn.step(X[0], torch.randn(2, 3, 5))
    with pytest.raises(RuntimeError, match="step needs bidirectional=False"):
        cell(3, 5, bidirectional=True).step(X[0])
    with pytest.raises(ValueError, match="activation is 'tanh'; it can be 'positive' or 'identity'"):
        cell(3, 5, activation="tanh")
    with pytest.raises(TypeError, match="num_layers should be of type int, got: str"):
        cell(3, 5, "2")


@every_class
@pytest.mark.parametrize("arguments", [(10, 20), (10, 20, 2, False, True, 0.1, True)])
def test_attributes_and_repr_are_those_of_gru(cell, arguments):
    mine, theirs = cell(*arguments), nn.GRU(*arguments)
    assert repr(mine) == repr(theirs).replace("GRU", cell.__name__)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(mine, name) == getattr(theirs, name)
    names = [name for name, _ in theirs.named_parameters() if "_hh_" not in name]
    assert [name for name, _ in mine.named_parameters()] == names
    blocks = 2 if cell is MinGRU else 3
    for name, parameter in mine.named_parameters():
        assert parameter.shape == (blocks * 20, *theirs.get_parameter(name).shape[1:])
    assert [id(p) for layer in mine.all_weights for p in layer] == [id(p) for p in mine.parameters()]


def test_repr_names_what_is_not_the_default():
    rnn = MinLSTM(3, 5, activation="identity", normalize=False, forget_bias=1.0)
    assert repr(rnn) == "MinLSTM(3, 5, activation=identity, normalize=False, forget_bias=1.0)"


@pytest.mark.parametrize(
    ("mine", "theirs", "percent"), [(MinGRU, nn.GRU, [33, 22, 17, 13]), (MinLSTM, nn.LSTM, [38, 25, 19, 15])]
)
def test_parameter_counts_of_the_paper(mine, theirs, percent):
    """Section 3 of https://arxiv.org/abs/2410.01201: weights only, d_h = 1, 2, 3, 4 times d_x."""

    def weights(rnn):
        return sum(p.numel() for name, p in rnn.named_parameters() if name.startswith("weight"))

    assert [round(100 * weights(mine(64, n * 64)) / weights(theirs(64, n * 64))) for n in (1, 2, 3, 4)] == percent


@every_class
def test_reset_parameters(cell):
    torch.manual_seed(0)
    rnn = cell(16, 256, 2, bidirectional=True)
    drawn = copy.deepcopy(rnn.state_dict())
    nn.init.zeros_(rnn.weight_ih_l1_reverse)
    torch.manual_seed(0)
    rnn.reset_parameters()
    for name, parameter in rnn.named_parameters():
        assert torch.equal(parameter, drawn[name])
        bound = (16 if "l0" in name else 512) ** -0.5
        assert 0.98 * bound < parameter.abs().max() <= bound


def test_forget_bias_is_added_to_the_forget_rows():
    torch.manual_seed(0)
    plain = MinLSTM(3, 5, 2, bidirectional=True).state_dict()
    torch.manual_seed(0)
    shifted = MinLSTM(3, 5, 2, bidirectional=True, forget_bias=3.0).state_dict()
    shift = torch.tensor([3.0] * 5 + [0.0] * 10)
    for name, value in plain.items():
        torch.testing.assert_close(shifted[name], value + shift if name.startswith("bias") else value)
    with pytest.raises(ValueError, match=r"forget_bias=3.0 needs a bias to add it to, got bias=False"):
        MinLSTM(3, 5, bias=False, forget_bias=3.0)
    assert MinLSTM(3, 5, bias=False)(X)[0].shape == (4, 2, 5)


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*")
@pytest.mark.parametrize("odd", ["None", "list", "sparse", "nested"])
@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
def test_what_is_no_dense_tensor_is_refused(kind, odd):
    rnn, name = kind(3, 4, batch_first=True), kind.__name__
    convert = {
        "None": lambda x: None,
        "list": torch.Tensor.tolist,
        "sparse": torch.Tensor.to_sparse,
        "nested": lambda x: torch.nested.nested_tensor(list(x)),
    }[odd]
    x, h = torch.rand(2, 5, 3), torch.rand(1, 2, 4)
    with pytest.raises(TypeError, match=f"{name}: input must be a dense tensor"):
        rnn(convert(x))
    with pytest.raises(TypeError, match=f"{name}.step: input_t must be a dense tensor"):
        rnn.step(convert(x[:, 0]))
    for option, value in (("hx", h), ("reset", torch.zeros(2, 5, dtype=torch.bool)), ("delta_t", torch.ones(2, 5))):
        if odd != "None":
            with pytest.raises(TypeError, match=f"{name}: {option} must be a dense tensor"):
                rnn(x, **{option: convert(value)})
