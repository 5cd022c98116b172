"""Packed documents are trained on as if each were alone."""

import random
from itertools import chain, pairwise

import pytest
import torch
from torch.nn import functional as F

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.data import TextDataModule
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import LanguageTask


def text(seed):
    return "".join(random.Random(seed).choices("abcdef é", k=20 + 7 * seed))


def prepared(path, tmp_path, **options):
    data = TextDataModule(path, data_dir=str(tmp_path / "data"), **{"batch_size": 2, "length": 10, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def documents_of(data, split):
    """The documents of a split as text, from tokens and borders."""
    tokens, starts = data.splits[split].tolist(), [*data.borders[split].nonzero()[0].tolist(), None]
    return [data.tokenizer.decode(tokens[a:b]) for a, b in pairwise(starts)]


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
@pytest.mark.parametrize("tuning", [False, True])
def test_borders(tmp_path, tokenizer, tuning):
    texts = [*map(text, range(8)), "", text(9)]
    options = {"tokenizer": tokenizer, "vocab_size": 260, "held_out": 0.4, "tuning": tuning}
    folder = tmp_path / "files"
    folder.mkdir()
    for number, content in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(content.encode())
    (tmp_path / "ended.txt").write_bytes("<é>".join(texts).encode())
    for path, documents, end in ((folder, "file", "\n"), (tmp_path / "ended.txt", "<é>", "<é>")):
        data = prepared(str(path), tmp_path, documents=documents, **options)
        whole = end.join(texts)
        found = [documents_of(data, split) for split in ("train", "validation")]
        if tokenizer != "byte":  # which may cut a character in two
            assert whole.startswith("".join(chain(*found)))
        for part in found:
            assert all(document.endswith(end) and document.count(end) == 1 for document in part[:-1])
        assert found[0][:3] == [each + end for each in texts[:3]]
    if tokenizer == "char":
        lines = prepared(str(tmp_path / "ended.txt"), tmp_path, documents="é", **options)
        assert len(documents_of(lines, "train")) > 3


def test_lines_equal_newlines(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(map(text, range(9))), encoding="utf-8")
    lines, ends = (prepared(str(tmp_path / "text.txt"), tmp_path, documents=each) for each in ("line", "\n"))
    assert documents_of(lines, "train") == documents_of(ends, "train")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mixer", ["mingru", ["minlstm", "attention"]])
def test_packed_equals_alone(tmp_path, stream, mixer):
    """Losses and gradients of all held-out documents: packed in batches, and each run alone."""
    (tmp_path / "text.txt").write_text("\n".join(text(n % 3) for n in range(60)), encoding="utf-8")
    data = prepared(str(tmp_path / "text.txt"), tmp_path, documents="line", stream=stream, length=120, batch_size=1)
    task = LanguageTask(data.input_size, data.input_size, dim=8, depth=2, mixer=mixer).double()

    def gradient(loss):
        return loss, *torch.autograd.grad(loss, list(task.parameters()))

    batch = data.val_dataloader().dataset[0]
    packed = F.cross_entropy(task.logits(batch)[0], batch.targets[0], ignore_index=IGNORED, reduction="sum")
    alone = torch.zeros((), dtype=torch.float64)
    starts = [0, *[t for t in batch.reset[0].nonzero().flatten().tolist() if t], 120]
    assert len(starts) > 4
    tokens = torch.from_numpy(data.splits["validation"].astype("int64"))
    for first, end in pairwise(starts):
        end = end if end < 120 or data.borders["validation"][120] else 121
        document = tokens[first:end]
        if len(document) > 1:
            alone = alone + F.cross_entropy(task(document[None, :-1])[0][0], document[1:], reduction="sum")
    torch.testing.assert_close(gradient(packed), gradient(alone))


def test_training_batches_have_resets(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(map(text, range(20))), encoding="utf-8")
    data = prepared(str(tmp_path / "text.txt"), tmp_path, documents="line")
    newline = data.tokenizer.encode("\n").ids[0]
    for batch, _ in zip(data.train_dataloader(), range(5), strict=False):
        assert not batch.continues
        assert torch.equal(batch.reset[:, 1:], batch.inputs[:, :-1] == newline)
        assert torch.equal(batch.targets == IGNORED, batch.inputs == newline)


def test_refused(tmp_path):
    (tmp_path / "text.txt").write_text("some text " * 20)
    with pytest.raises(InputError, match="documents must be file, line or the text that ends a document, got an empty"):
        TextDataModule(str(tmp_path / "text.txt"), documents="")
    with pytest.raises(InputError, match="got 'lines', which does not occur in"):
        prepared(str(tmp_path / "text.txt"), tmp_path, documents="lines")


def test_documents_of_length_0(tmp_path):
    """They are named, and take part with their ends alone."""
    (tmp_path / "text.txt").write_text("ab\n\n\ncd\n" * 50, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"^80 of 160 documents of the split train have length 0"):
        data = prepared(str(tmp_path / "text.txt"), tmp_path, documents="line", held_out=0.2)
    assert documents_of(data, "train") == 40 * ["ab\n", "\n", "\n", "cd\n"]
    (tmp_path / "ends.txt").write_text("\n" * 500)
    with pytest.raises(InputError, match="documents must have a token to predict: with 'line', every document of the"):
        prepared(str(tmp_path / "ends.txt"), tmp_path, documents="line")


def test_files_of_the_same_joined_text_have_their_own_borders(tmp_path):
    for name, lines in (("whole.txt", range(40)), ("a.txt", range(9)), ("b.txt", range(9, 40))):
        (tmp_path / name).write_text("\n".join(f"line {line:02}" for line in lines), newline="")
    one, two = str(tmp_path / "whole.txt"), [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    found = [prepared(path, tmp_path, documents="file").borders["train"].nonzero()[0].tolist() for path in (one, two)]
    assert found == [[0], [0, 9 * len("line 00\n")]]
    plain = [prepared(path, tmp_path).folder for path in (one, two)]
    assert plain[0] == plain[1]  # without documents, the tokens are the same
