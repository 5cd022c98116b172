"""Mixers load the weights, draw the initial values and give the results of version 0.1."""

from pathlib import Path

import pytest
import torch

from minrnn_lightning.nn import Backbone

SAVED = torch.load(Path(__file__).parents[2] / "fixtures/mixers_0_1.pt", weights_only=True)


def build(args):
    torch.manual_seed(0)
    return Backbone(4, 1, **args, expansion=1.5, kernel_size=2, mlp_ratio=1.0)


@pytest.mark.parametrize("name", SAVED["cases"])
def test_checkpoints_of_version_0_1_load(name):
    case = SAVED["cases"][name]
    model = build(case["args"])
    drawn = model.state_dict()
    assert {key: list(value.shape) for key, value in drawn.items()} == case["shapes"]
    sizes = [value.numel() for value in drawn.values()]
    values = [v.view(s) for v, s in zip(case["values"].split(sizes), case["shapes"].values(), strict=True)]
    weights = dict(zip(case["shapes"], values, strict=True))
    for key, value in drawn.items():
        torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-7)
    model.load_state_dict(weights)
    with torch.no_grad():
        output, _ = model(SAVED["x"], None, SAVED["reset"])
    torch.testing.assert_close(output, case["output"], rtol=1e-5, atol=1e-6)
