"""Layers and tasks are traced with ``torch.jit.trace``, saved and loaded."""

import io

import pytest
import torch

from minrnn_lightning import Backbone, LanguageTask, MinGRU, MinLSTM
from minrnn_lightning.export.flatten import flatten

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def saved_and_loaded(module, *inputs):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module.eval(), inputs, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


def check(module, inputs, others):
    traced = saved_and_loaded(module, *inputs)
    torch.testing.assert_close(traced(*others), module(*others))


@pytest.mark.parametrize("layer", [MinGRU, MinLSTM])
def test_layer(layer):
    check(layer(3, 4, num_layers=2), (torch.randn(5, 2, 3),), (torch.randn(9, 3, 3),))


@pytest.mark.parametrize(
    "make", [lambda: MinGRU(3, 4), lambda: Backbone(3, 1), lambda: LanguageTask(5, 5, dim=8, depth=1)]
)
def test_step(make):
    module = flatten(make(), "step")
    check(module, module.examples, module.examples)


def test_sequence_of_a_backbone():
    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Backbone(8, 2, dropout=0.1)

        def forward(self, x):
            return self.backbone(x)[0]

    check(Hidden(), (torch.randn(2, 9, 8),), (torch.randn(3, 30, 8),))


def test_a_task_without_a_trainer():
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.task = LanguageTask(5, 5, dim=8, depth=1)

        def forward(self, tokens):
            return self.task(tokens)[0]

    check(Logits(), (torch.zeros(2, 7, dtype=torch.long),), (torch.ones(3, 20, dtype=torch.long),))


def test_the_error_without_a_trainer_remains():
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = LanguageTask(5, 5, dim=8, depth=1).trainer
