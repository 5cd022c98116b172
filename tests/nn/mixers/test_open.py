"""Mixers from outside the package: classes, paths of classes, and the one that CONTRIBUTING.md shows."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.mixers import GRUMixer, MinGRUMixer, find_mixer, mixer_name
from minrnn_lightning.testing import check_mixer

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


class Noted(MinGRUMixer):
    """Notes what its constructor gets."""

    has_convolution = True

    def __init__(self, dim, layer_index, depth, shift=0):
        super().__init__(dim)
        self.noted = layer_index, depth, shift


class Plain(MinGRUMixer):
    def __init__(self, dim, **options):
        super().__init__(dim, **options)


@pytest.fixture
def rg_lru(tmp_path, monkeypatch):
    """The mixer of CONTRIBUTING.md, as a module."""
    (code,) = re.findall(r"## Add a mixer.*?```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_mixers.py").write_text(code, encoding="utf-8")
    (tmp_path / "broken_module.py").write_text("import no_such_dependency\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield find_mixer("my_mixers.RGLRU")
    del sys.modules["my_mixers"]


def test_the_mixer_of_contributing_keeps_the_contract(rg_lru):
    check_mixer(rg_lru)
    check_mixer(lambda dim: Backbone(dim, 2, "my_mixers.RGLRU", mlp_ratio=2))


def test_rg_lru_is_that_of_the_paper(rg_lru):
    mixer, x = rg_lru(4).double(), torch.randn(2, 6, 4, dtype=torch.float64)
    assert ((mixer.decay.sigmoid() ** 8 > 0.9) & (mixer.decay.sigmoid() ** 8 < 0.999)).all()
    r, i = mixer.gates(x).sigmoid().chunk(2, -1)
    a = mixer.decay.sigmoid() ** (8 * r)
    h, states = torch.zeros(2, 4), []
    for t in range(6):
        h = a[:, t] * h + (1 - a[:, t] ** 2).sqrt() * i[:, t] * x[:, t]
        states.append(h)
    torch.testing.assert_close(mixer(x)[0], torch.stack(states, 1))


def test_a_pattern_of_classes_paths_and_names(rg_lru):
    backbone = Backbone(8, 4, [rg_lru, "mingru", GRUMixer, "my_mixers.RGLRU"], mixer_args={"gru": {"expansion": 2.0}})
    one, two, three, four = (block.mixer for block in backbone.blocks)
    assert type(one) is type(four) is rg_lru
    assert (type(two), type(three)) == (MinGRUMixer, GRUMixer)
    assert three.out.in_features == 16


def test_a_constructor_gets_what_it_asks_for():
    path = mixer_name(Noted)
    backbone = Backbone(8, 2, Noted, mixer_args={path: {"shift": 3}})
    assert [block.mixer.noted for block in backbone.blocks] == [(0, 2, 3), (1, 2, 3)]
    assert all(block.conv is None for block in backbone.blocks)
    with pytest.raises(InputError, match="Noted has no layer_index; it has shift"):
        Backbone(8, 2, Noted, mixer_args={path: {"layer_index": 3}})
    options = {"activation": "identity"}
    assert Backbone(8, 1, Plain, mixer_args={mixer_name(Plain): options}).blocks[0].mixer.activation == "identity"


def test_names():
    assert mixer_name("anything") == "anything"
    assert mixer_name(GRUMixer) == "gru"
    assert mixer_name(Noted) == f"{__name__}.Noted"


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ("nowhere.Mixer", "mixer 'nowhere.Mixer' cannot be imported: there is no module nowhere; install it"),
        ("torch.nn.nowhere.X", "cannot be imported: there is no module torch.nn.nowhere"),
        ("my_mixers.Other", "mixer 'my_mixers.Other' cannot be imported: my_mixers has no Other"),
        ("torch.nn.GRU", "mixer 'torch.nn.GRU' is not a subclass of minrnn_lightning.nn.mixers.Mixer"),
        ("my_mixers.", "mixer 'my_mixers.' is unknown; it can be attention, .*, or the path of a class"),
        (".RGLRU", "mixer '.RGLRU' is unknown"),
        (nn.GRU, "is not a subclass"),
        ([3], "mixer 3 is neither a name nor a subclass"),
    ],
)
@pytest.mark.usefixtures("rg_lru")
def test_refuses(mixer, message):
    with pytest.raises(InputError, match=message):
        Backbone(8, 1, mixer)


@pytest.mark.usefixtures("rg_lru")
def test_what_a_module_lacks_itself_is_no_fault_of_the_path():
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        Backbone(8, 1, "broken_module.Mixer")
