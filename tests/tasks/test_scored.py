"""TaggingTask and ClassificationTask: where answers are read, their scores, and that padding changes nothing."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.batches import TimedLabelledBatch
from minrnn_lightning.tasks import ClassificationTask, TaggingTask
from minrnn_lightning.tasks.classification import reverse_within
from minrnn_lightning.tasks.scored import AccuracyByLength

LEARNED = {"minlstm": {"learn_initial_state": True}}  # which decays too
SMALL = {"dim": 8, "depth": 2, "expansion": 1.5, "kernel_size": 3, "mlp_ratio": 2.0}


def tagging(**options):
    torch.manual_seed(0)
    return TaggingTask(**{"input_size": 9, "output_size": 5, **SMALL, **options}).eval()


def classification(**options):
    torch.manual_seed(0)
    return ClassificationTask(**{"input_size": 9, "output_size": 5, **SMALL, **options}).eval()


def questions(seed=0, batch=6, positions=10):
    """Tokens, answers at about half of the positions, at least one in each example, and two different lengths."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randint(9, (batch, positions), generator=random)
    targets = torch.randint(5, (batch, positions), generator=random)
    asked = torch.rand(batch, positions, generator=random) < 0.5
    asked[:, -1] = True
    return inputs, torch.where(asked, targets, -100), torch.arange(batch) % 2 + 7


def sequences(lengths, positions, filler=0, seed=0):
    """Sequences with labels, of these lengths, padded to ``positions`` with ``filler``."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(9, (len(lengths), max(lengths)), generator=random)
    tokens = F.pad(tokens, (0, positions - max(lengths)))
    inside = torch.arange(positions) < torch.tensor(lengths).unsqueeze(1)
    labels = torch.randint(5, (len(lengths),), generator=random)
    return torch.where(inside, tokens, filler), labels, torch.tensor(lengths)


class Known(pl.LightningDataModule):
    """A data module that knows what a guess is worth."""

    chance, baseline = 0.2, 0.4

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


def trainer(folder, **options):
    defaults = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return pl.Trainer(default_root_dir=folder, enable_checkpointing=False, **{**defaults, **options})


def test_answers_are_read_where_they_are_asked():
    task, batch = tagging(), questions()
    logits, targets, examples = task.logits_and_targets(batch)
    everywhere, _ = task(batch[0])
    positions = [(b, t) for b in range(6) for t in range(10) if batch[1][b, t] != -100]
    assert examples.tolist() == [b for b, _ in positions]
    assert targets.tolist() == [int(batch[1][position]) for position in positions]
    torch.testing.assert_close(logits, torch.stack([everywhere[position] for position in positions]))


def test_loss_is_the_mean_over_answers():
    task, batch = tagging(), questions()
    logits, _ = task(batch[0])
    losses = [-logits[b, t].log_softmax(-1)[batch[1][b, t]] for b, t in (batch[1] != -100).nonzero()]
    torch.testing.assert_close(task.batch_loss(batch), torch.stack(losses).mean())
    torch.testing.assert_close(task.loss(logits, batch[1]), torch.stack(losses).mean())


def test_scores_by_hand(tmp_path):
    task, batches = tagging(), [questions(0), questions(1, batch=3)]
    data = Known(batches)
    (scores,) = trainer(tmp_path).validate(task, data, verbose=False)
    shares, losses = {7: [], 8: []}, []
    with torch.no_grad():
        for inputs, targets, lengths in batches:
            logits, _ = task(inputs)
            losses.append(
                F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")[targets.flatten() >= 0]
            )
            for b, length in enumerate(lengths.tolist()):
                right = [int(logits[b, t].argmax() == targets[b, t]) for t in range(10) if targets[b, t] != -100]
                shares[length].append(np.mean(right))
    accuracy = np.mean(shares[7] + shares[8])
    assert scores["val/accuracy"] == pytest.approx(accuracy)
    assert scores["val/loss"] == pytest.approx(torch.cat(losses).mean().item())
    assert scores["val/accuracy/7"] == pytest.approx(np.mean(shares[7]))
    assert scores["val/accuracy/8"] == pytest.approx(np.mean(shares[8]))
    assert scores["val/scaled_accuracy"] == pytest.approx((accuracy - 0.2) / 0.8)
    assert scores["val/baseline"] == pytest.approx(0.4)
    assert task.accuracy_by_length == pytest.approx({n: np.mean(share) for n, share in shares.items()})
    (tested,) = trainer(tmp_path).test(task, data, verbose=False)
    assert {name.replace("test/", "val/"): value for name, value in tested.items()} == scores
    predicted = trainer(tmp_path).predict(task, data)
    with torch.no_grad():
        assert torch.equal(predicted[0], task.logits_and_targets(batches[0])[0].argmax(-1))


def test_scores_without_a_data_module(tmp_path):
    (scores,) = trainer(tmp_path).validate(tagging(), DataLoader([questions()], batch_size=None), verbose=False)
    assert set(scores) == {"val/loss", "val/accuracy", "val/accuracy/7", "val/accuracy/8"}


def test_examples_without_a_question_do_not_count(tmp_path):
    inputs, targets, lengths = questions(batch=4)
    without = torch.where(torch.arange(4)[:, None] % 3 == 0, -100, targets)  # the first and the last
    task = tagging()
    (scores,) = trainer(tmp_path).validate(
        task, DataLoader([(inputs, without, lengths)], batch_size=None), verbose=False
    )
    middle = [(inputs[1:3], targets[1:3], lengths[1:3])]
    (expected,) = trainer(tmp_path).validate(task, DataLoader(middle, batch_size=None), verbose=False)
    assert scores == pytest.approx(expected)


def test_many_lengths_are_put_together(tmp_path):
    inputs, targets, _ = questions(batch=100)
    loader = DataLoader([(inputs, targets, torch.arange(100) // 2 + 40)], batch_size=None)
    (scores,) = trainer(tmp_path).validate(task := tagging(), loader, verbose=False)
    names = [name.removeprefix("val/accuracy/") for name in scores if name.startswith("val/accuracy/")]
    assert len(names) == 16
    assert names[0] == "40-43"
    assert names[-1].endswith("-89")
    assert scores["val/accuracy/40-43"] == pytest.approx(np.mean([task.accuracy_by_length[n] for n in range(40, 44)]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 5))
def test_accuracy_by_length(examples, batches):
    metric = AccuracyByLength()
    for part in np.array_split(np.array(examples), min(batches, len(examples))):
        metric.update(torch.tensor(part[:, 1]), torch.tensor(part[:, 0]).long())
    for length, (mean, count) in metric.compute().items():
        ours = [accuracy for n, accuracy in examples if n == length]
        assert count == len(ours)
        assert mean == pytest.approx(np.mean(ours))
    assert list(metric.compute()) == sorted({length for length, _ in examples})


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_padding_changes_nothing(pooling, bidirectional, mixer, lengths, more, seed):
    task = classification(pooling=pooling, bidirectional=bidirectional, mixer=mixer)
    inputs, _, _ = sequences(lengths, max(lengths), seed=seed)
    padded, _, _ = sequences(lengths, max(lengths) + more, filler=8, seed=seed)
    with torch.no_grad():
        alone = torch.cat([task(row[None, :n], torch.tensor([n])) for row, n in zip(inputs, lengths, strict=True)])
        torch.testing.assert_close(task(padded, torch.tensor(lengths)), alone)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_gets_no_gradient(pooling, bidirectional):
    task = classification(pooling=pooling, bidirectional=bidirectional)
    inputs, labels, lengths = sequences([3, 5], 9)
    inputs = torch.where(torch.arange(9) < lengths.unsqueeze(1), inputs % 8, 8)  # 8 is in the padding only
    task.batch_loss((inputs, labels, lengths)).backward()
    assert task.encoder.weight.grad[:8].abs().sum() > 0
    assert task.encoder.weight.grad[8].abs().sum() == 0


def test_directions():
    """Forwards the last step sees the first token; only backwards the first step sees the last."""
    inputs, _, lengths = sequences([6], 6)
    changed = inputs.clone()
    changed[0, -1] = (inputs[0, -1] + 1) % 9
    for bidirectional in (False, True):
        task = classification(bidirectional=bidirectional)
        hidden = [task.backbone(task.encoder(tokens))[0][:, 0] for tokens in (inputs, changed)]
        torch.testing.assert_close(*hidden)
        if bidirectional:
            read = [
                task.backward_backbone(reverse_within(task.encoder(tokens), lengths))[0][:, -1]
                for tokens in (inputs, changed)
            ]
            assert not torch.allclose(*read)
            features = task.encode(inputs, lengths)
            assert features.shape == (1, 16)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_reverse_within(lengths):
    x = torch.arange(len(lengths) * 8).view(len(lengths), 8)
    expected = [[*row[:n][::-1], *row[n:]] for row, n in zip(x.tolist(), lengths, strict=True)]
    assert reverse_within(x, torch.tensor(lengths)).tolist() == expected


def test_pairs_are_read_by_one_stack(tmp_path):
    task = classification(pairs=True, output_size=2)
    a, _, a_lengths = sequences([4, 7], 7)
    b, _, b_lengths = sequences([5, 2], 7, seed=1)
    inputs, lengths = torch.stack([a, b], 1), torch.stack([a_lengths, b_lengths], 1)
    with torch.no_grad():
        x, y = task.encode(a, a_lengths), task.encode(b, b_lengths)
        torch.testing.assert_close(task(inputs, lengths), task.head(torch.cat([x, y, x * y, x - y], -1)))
    loader = DataLoader([(inputs, torch.tensor([0, 1]), lengths)], batch_size=None)
    (scores,) = trainer(tmp_path).validate(task, loader, verbose=False)
    assert {"val/accuracy/5", "val/accuracy/7"} < set(scores)  # the longer one of each pair counts


def test_learns_to_classify_and_loads(tmp_path):
    """The label is the first token: a mean or last state must have kept it."""
    inputs, _, lengths = sequences([7, 4, 6, 8] * 8, 8)
    batch = (inputs, inputs[:, 0] % 5, lengths)
    task = classification(lr=0.02, warmup=5, pooling="last", bidirectional=True).train()
    run = trainer(tmp_path, max_steps=80, max_epochs=-1)
    run.fit(task, DataLoader([batch], batch_size=None))
    assert run.callback_metrics["train/loss"] < 0.2
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch[0], batch[2]), task.eval()(batch[0], batch[2]))
    assert loaded.hparams.pooling == "last"


def test_compile_reaches_both_stacks():
    task = classification(bidirectional=True, compile=True)
    task.configure_model()
    assert task.backbone._compiled_call_impl is not None
    assert task.backward_backbone._compiled_call_impl is not None


def test_bad_pooling():
    with pytest.raises(ValueError, match="pooling must be mean or last, got max"):
        classification(pooling="max")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_mean_loss_counts_every_answer_once(precision):
    torch.manual_seed(0)
    task = TaggingTask(11, 11, dim=16, depth=1)
    inputs = torch.randint(11, (60, 4, 9))
    targets = torch.where(torch.rand(inputs.shape) < torch.rand(60, 1, 1), inputs, -100)
    targets[3] = -100  # no row of this batch asks for an answer
    batches = list(zip(inputs, targets, torch.full((60, 4), 9), strict=True))
    trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False)
    got = trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)[0]["val/loss"]
    with torch.no_grad():
        logits, answers, _ = task.logits_and_targets((inputs.flatten(0, 1), targets.flatten(0, 1), None))
    exact = F.cross_entropy(logits.double(), answers).item()
    assert got == pytest.approx(exact, rel=1e-5 if precision == "32-true" else 5e-3)
    nothing = [batches[3]] * 2
    assert math.isnan(trainer.validate(task, DataLoader(nothing, batch_size=None), verbose=False)[0]["val/loss"])
    assert task.batch_loss(batches[3]).item() == 0


@pytest.mark.parametrize(
    "options", [{}, {"pairs": True}, {"mixer": "minlstm", "pooling": "last", "mixer_args": LEARNED}]
)
def test_times_of_a_batch_reach_both_directions(options):
    """Each sequence alone, without padding, in both orders."""
    task = classification(bidirectional=True, kernel_size=0, **options)
    tokens, labels, lengths = sequences([7, 3, 5, 1], 9)
    times = torch.rand(4, 9) * 5
    shape = (2, 2, 9) if task.pairs else (4, 9)
    batch = TimedLabelledBatch(tokens.view(shape), labels[: shape[0]], lengths.view(shape[:-1]), times.view(shape))
    logits, targets, _ = task.logits_and_targets(batch)
    assert torch.equal(targets, batch.targets)
    features = []
    for row, gaps, length in zip(tokens, times, lengths.tolist(), strict=True):
        x, gaps = task.encoder(row[None, :length]), gaps[:length].tolist()
        forth = torch.tensor([gaps])
        back = torch.tensor([[gaps[0], *gaps[:0:-1]]])
        hidden = [task.backbone(x, delta_t=forth)[0], task.backward_backbone(x.flip(1), delta_t=back)[0]]
        features.append(torch.cat([h[0, -1] if task.pooling == "last" else h[0].mean(0) for h in hidden]))
    features = torch.stack(features)
    if task.pairs:
        a, b = features.view(2, 2, -1).unbind(1)
        features = torch.cat([a, b, a * b, a - b], -1)
    torch.testing.assert_close(logits, task.head(features))
    regular = task.logits_and_targets(batch._replace(delta_t=torch.ones_like(batch.delta_t)))[0]
    torch.testing.assert_close(regular, task.logits_and_targets(batch[:3])[0])
    assert (regular - logits).abs().max() > 1e-3
