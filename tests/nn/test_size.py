"""Counting parameters and operations, and matching the former."""

import pytest
import torch

from minrnn_lightning import ClassificationTask, LanguageTask
from minrnn_lightning.nn import MIXERS
from minrnn_lightning.nn.size import matching_dim, parse_count


def count(task):
    return sum(p.numel() for p in task.parameters())


@pytest.mark.parametrize("mixer", [*MIXERS, ["mingru", "mingru", "attention"]], ids=str)
def test_every_mixer_reaches_the_number(mixer):
    task = LanguageTask(65, 65, mixer, depth=3, match_parameters="900k")
    assert abs(count(task) - 900_000) < 0.02 * 900_000
    again = LanguageTask(**task.hparams)
    assert count(again) == count(task)
    assert task.hparams.match_parameters is None


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_every_part_of_a_task_counts(bidirectional, pairs):
    task = ClassificationTask(256, 10, bidirectional=bidirectional, pairs=pairs, match_parameters="300k")
    assert abs(count(task) - 300_000) < 0.03 * 300_000
    assert count(ClassificationTask(**task.hparams)) == count(task)


def test_what_a_subclass_adds_counts():
    class Wider(LanguageTask):
        def __init__(self, input_size, output_size, extra=1, **options):
            super().__init__(input_size, output_size, **options)
            self.more = torch.nn.Linear(self.hparams["dim"], extra)

    task = Wider(65, 65, extra=1000, depth=2, match_parameters="500k")
    assert abs(count(task) - 500_000) < 0.03 * 500_000


def test_the_nearest_even_width_of_those_that_the_heads_divide():
    args = {"attention": {"heads": 6, "expansion": 1.0}}
    task = LanguageTask(65, 65, "attention", depth=2, mixer_args=args, match_parameters=370_000)
    widths = {dim: count(LanguageTask(65, 65, "attention", dim, 2, mixer_args=args)) for dim in range(96, 192, 12)}
    assert count(task) == min(widths.values(), key=lambda n: abs(n - 370_000))


@pytest.mark.parametrize("target", [1, 50, 1000, 123_457])
def test_matching_dim(target):
    best = min(range(2, 1000, 2), key=lambda dim: abs(dim * dim + dim - target))
    if abs(best * best + best - target) <= 0.05 * target:
        assert matching_dim(lambda dim: dim * dim + dim, target) == best
    else:
        with pytest.raises(ValueError, match=f"match_parameters {target:,} cannot be met: width {best} has"):
            matching_dim(lambda dim: dim * dim + dim, target)


@pytest.mark.parametrize(
    ("text", "number"), [("6.3M", 6_300_000), ("800k", 800_000), (" 12 ", 12), (7, 7), ("1G", 10**9)]
)
def test_parse_count(text, number):
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "many", "-3", "1.2.3M", "6,3M"])
def test_parse_count_refuses(text):
    with pytest.raises(ValueError, match=r"match_parameters must be a number of parameters such as 800k or 6\.3M"):
        parse_count(text)


def test_more_weights_than_memory():
    with pytest.raises(ValueError, match=r"match_parameters 10,000,000,000,000 cannot be met: its weights take"):
        LanguageTask(65, 65, match_parameters="10000G")


def test_heads_that_never_divide_are_named():
    with pytest.raises(ValueError, match="heads must divide the width"):
        LanguageTask(65, 65, "attention", mixer_args={"attention": {"heads": 1009}}, match_parameters="800k")


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "gru", "lstm"])
def test_flops_are_two_for_every_weight(mixer):
    """Where every weight of a matrix or a convolution meets every token once."""
    task = LanguageTask(65, 65, mixer, dim=32, depth=2, kernel_size=4)
    weights = sum(p.numel() for p in task.parameters() if p.ndim >= 2) - task.encoder.weight.numel()
    assert task.flops(8) == pytest.approx(2 * weights, rel=0.03)  # the convolution is padded


def test_flops_of_attention_grow_with_the_length():
    task = LanguageTask(65, 65, "attention", dim=32, depth=2, expansion=1.0, kernel_size=0)
    pairs = task.flops(64) - task.flops(32)
    assert pairs == 2 * 2 * 2 * 32 * 32  # two layers, two products, two operations, channels, further pairs a token


def test_flops_of_two_stacks_and_of_a_head_that_answers_once():
    one, two = (ClassificationTask(16, 4, "last", both, dim=32, depth=2) for both in (False, True))
    stack = one.flops(64) - 2 * 32 * 4 / 64
    assert two.flops(64) == pytest.approx(2 * stack + 2 * 64 * 4 / 64)


def test_counting_leaves_the_model_alone():
    task = LanguageTask(65, 65, "lstm", dim=32, depth=2, dropout=0.5)
    before = {name: p.clone() for name, p in task.named_parameters()}
    random = torch.get_rng_state()
    task.flops(8)
    assert task.backbone.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(p, before[name]) for name, p in task.named_parameters())
