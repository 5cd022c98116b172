"""LanguageTask: every logged value against one computed from all real targets at once, by plain PyTorch and Python."""

import math
import os

import lightning.pytorch as pl
import pytest
import torch
from forked import run_two
from torch.nn import functional as F
from torch.utils.data import DataLoader

from minrnn_lightning.data import TextDataModule
from minrnn_lightning.tasks import LanguageTask

ENGLISH = "It is a truth universally acknowledged, that a cup of tea is never warm.\n"
GREEK = "Φάε ψάρι, 日本語 and naïve 🙂 emoji — all of them together.\n"
NAMES = ("loss", "perplexity", "bits_per_character", "bits_per_byte")


def language_task(size=11, **options):
    torch.manual_seed(0)
    return LanguageTask(size, size, **{"dim": 8, "depth": 1, **options})


def trainer(folder, **options):
    silence = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    silence |= {"logger": False, "accelerator": "cpu", "default_root_dir": folder}
    return pl.Trainer(**{**silence, **options})


def batches(lengths):
    """Batches of 3 x 8 tokens, with so many real targets each, scattered."""
    random = torch.Generator().manual_seed(1)
    made = []
    for real in lengths:
        inputs, targets = torch.randint(11, (2, 3, 8), generator=random).unbind()
        targets.view(-1)[torch.randperm(24, generator=random)[real:]] = -100
        made.append((inputs, targets))
    return made


def held_out(folder, task, made, part="val", **options):
    run = trainer(folder, **options)
    evaluate = run.validate if part == "val" else run.test
    return evaluate(task, DataLoader(made, batch_size=None), verbose=False)[0]


def nats(task, made):
    """The losses of all real targets, one by one, in float64."""
    task.eval()
    with torch.no_grad():
        logits = torch.cat([task(inputs)[0].flatten(0, 1) for inputs, _ in made]).double()
    targets = torch.cat([targets.flatten() for _, targets in made])
    real = targets != -100
    return -logits.log_softmax(-1)[real, targets[real]]


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("lengths", [[24, 24, 24], [24, 1, 13], [0, 24, 2], [5, 0, 0], [1]])
def test_padding_counts_nowhere(tmp_path, part, lengths):
    task, made = language_task(), batches(lengths)
    expected = nats(task, made).mean().item()
    got = held_out(tmp_path, task, made, part)
    assert got[f"{part}/loss"] == pytest.approx(expected, rel=1e-6)
    assert got[f"{part}/perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert set(got) == {f"{part}/loss", f"{part}/perplexity"}, "a plain loader does not know the sizes of tokens"


def test_means_do_not_depend_on_the_batches(tmp_path):
    task, (full,) = language_task(), batches([11])
    rows = [tuple(tensor[row : row + 1] for tensor in full) for row in range(3)]
    assert held_out(tmp_path, task, rows) == pytest.approx(held_out(tmp_path, task, [full]), rel=1e-6)


def test_a_loss_of_its_own_may_be_nan_where_nothing_is_asked(tmp_path):
    class Smooth(LanguageTask):
        def loss(self, logits, targets):
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)

    task, made = Smooth(11, 11, dim=8, depth=1), batches([0, 7, 24])
    task.eval()
    with torch.no_grad():
        logits = torch.cat([task(inputs)[0].flatten(0, 1) for inputs, _ in made])
        expected = task.loss(logits[None], torch.cat([targets.flatten() for _, targets in made])[None])
    assert held_out(tmp_path, task, made)["val/loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_batch_is_seen(tmp_path, part, value):
    task, made = language_task(), batches([24, 24, 24, 24])
    for inputs, _ in made:
        inputs[inputs == 7] = 6
    finite = held_out(tmp_path, task, made, part)
    assert all(map(math.isfinite, finite.values()))
    with torch.no_grad():
        task.encoder.weight[7] = value
    made[1][0][0, 0] = 7
    assert all(map(math.isnan, held_out(tmp_path, task, made, part).values()))
    made[1][0][0, 0] = 6
    assert all(map(math.isfinite, held_out(tmp_path, task, made, part).values())), "the next pass begins anew"


def test_nothing_is_left_of_an_interrupted_pass(tmp_path):
    task, made = language_task(), batches([24, 24])
    expected = held_out(tmp_path, task, made[:1])
    broken = [made[1], (made[0][0], made[0][1][:, :3])]
    with pytest.raises(ValueError, match="batch_size"):
        held_out(tmp_path, task, broken)
    assert held_out(tmp_path, task, made[:1]) == expected


def test_each_validation_of_a_fit_stands_for_itself(tmp_path):
    made, logged, expected = batches([24, 11]), [], []

    class Compare(pl.Callback):
        def on_validation_end(self, trainer, task):
            logged.append(trainer.callback_metrics["val/loss"].item())
            expected.append(nats(task, made).mean().item())

    task = language_task(lr=0.1, warmup=0)
    run = trainer(tmp_path, max_steps=4, val_check_interval=1, callbacks=[Compare()])
    run.fit(task, DataLoader(batches([24] * 4), batch_size=None), DataLoader(made, batch_size=None))
    assert len(logged) == 5, "one is the sanity check"
    assert max(expected) - min(expected) > 0.01
    assert logged == pytest.approx(expected, rel=1e-5)


def test_sums_are_exact_in_a_model_of_bfloat16(tmp_path):
    """A sum in bfloat16 has only two or three digits."""
    task, made = language_task(), batches([24] * 60)
    got = held_out(tmp_path, task, made, precision="bf16-true")
    assert got["val/loss"] == pytest.approx(nats(task.bfloat16(), made).mean().item(), rel=1e-4)


def test_training_loss_is_the_mean_over_real_targets():
    task = language_task()
    logits = torch.randn(3, 8, 11)
    targets = batches([5])[0][1]
    real = targets != -100
    expected = -logits.log_softmax(-1)[real].gather(-1, targets[real].unsqueeze(-1)).mean()
    torch.testing.assert_close(task.loss(logits, targets), expected)


def test_a_training_batch_of_padding_alone_changes_nothing(tmp_path):
    task = language_task(weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    run = trainer(tmp_path, max_steps=2)
    run.fit(task, DataLoader(batches([0, 0]), batch_size=None))
    assert run.callback_metrics["train/loss"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())


@pytest.fixture
def mixed_text(tmp_path, monkeypatch):
    """Two scripts; the held-out part begins and ends with lines of ASCII, so that no character is cut there."""
    monkeypatch.setenv("MINRNN_DATA_DIR", str(tmp_path / "data"))
    file = tmp_path / "text.txt"
    file.write_text((ENGLISH + GREEK) * 60 + ENGLISH * 6 + GREEK * 4 + ENGLISH * 6, encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_bits_per_character_and_byte(tmp_path, mixed_text, tokenizer, batch_size):
    data = TextDataModule(str(mixed_text), tokenizer, vocab_size=400, batch_size=batch_size, length=16, held_out=0.1)
    task = language_task(data.input_size)
    for part, run in (("val", trainer(tmp_path).validate), ("test", trainer(tmp_path).test)):
        got = run(task, data, verbose=False)[0]
        made = list(data.val_dataloader())
        text = data.tokenizer.decode(torch.cat([targets.flatten() for _, targets in made]).tolist())
        assert text in mixed_text.read_text(encoding="utf-8")
        assert len(text) < 0.95 * len(text.encode())
        bits = nats(task, made).sum().item() / math.log(2)
        assert got[f"{part}/loss"] == pytest.approx(nats(task, made).mean().item(), rel=1e-5)
        assert got[f"{part}/bits_per_character"] == pytest.approx(bits / len(text), rel=1e-5)
        assert got[f"{part}/bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=1e-5)
        assert set(got) == {f"{part}/{name}" for name in NAMES}


SCRIPT = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_language import batches, language_task, trainer
from torch.utils.data import DataLoader

class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return batches([0, 24, 3, 17, 1, 0])[index]

class Sized(__import__("lightning").pytorch.LightningDataModule):
    token_sizes = (torch.arange(11), 2 * torch.arange(11) + 1)
    def val_dataloader(self):
        return DataLoader(Batches(), batch_size=None)

if __name__ == "__main__":
    run = trainer({folder!r}, devices=2, strategy="ddp")
    got = run.validate(language_task(), Sized(), verbose=False)[0]
    torch.save(got, {folder!r} + "/got" + str(run.global_rank))
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=os.path.dirname(__file__), folder=str(tmp_path)))
    run_two([tmp_path / "script.py"], tmp_path)
    made = batches([0, 24, 3, 17, 1, 0])
    losses, targets = nats(language_task(), made), torch.cat([targets.flatten() for _, targets in made])
    characters = targets[targets != -100].sum().item()
    for rank in range(2):
        got = torch.load(tmp_path / f"got{rank}", weights_only=True)
        assert got["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
        assert got["val/bits_per_character"] == pytest.approx(losses.sum().item() / math.log(2) / characters, rel=1e-6)
        bytes_ = 2 * characters + len(losses)
        assert got["val/bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / bytes_, rel=1e-6)
