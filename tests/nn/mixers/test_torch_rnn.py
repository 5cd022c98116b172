"""The mixer ``lstm`` under ``torch.compile``."""

import torch

from minrnn_lightning import Backbone


def test_compiled_with_resets():
    model, x = Backbone(dim=4, depth=1, mixer="lstm"), torch.randn(2, 6, 4)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 3] = True
    expected = torch.autograd.grad(model(x, reset=reset)[0].sum(), list(model.parameters()))
    torch.compiler.reset()
    y, _ = torch.compile(model, backend="aot_eager")(x, reset=reset)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), list(model.parameters())), expected)
    torch.compiler.reset()
