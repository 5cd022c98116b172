"""Data sets that are read while they are trained on: their batches, the shuffle buffer, and exact resumption."""

import json
import random
from itertools import chain, islice

import datasets
import pytest
import torch
from prepared_text import prepared
from tokenizers import Tokenizer, models, pre_tokenizers

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.checkpoint import tokenizer_of
from minrnn_lightning.data import StreamingTextDataModule
from minrnn_lightning.data.text.shuffled_rows import ShuffledRows, StreamedWindows, encode_rows, rows_of
from minrnn_lightning.data.text.tokenizer import byte_tokenizer, char_tokenizer
from minrnn_lightning.errors import InputError

ROWS = [f"{number}: " + "".join(random.Random(number).choices("abc é", k=number % 40)) for number in range(60)]


@pytest.fixture
def files(tmp_path):
    """Two files of rows, some of which have no text."""
    for part in range(2):
        lines = [json.dumps({"text": row, "other": 1}) for row in ROWS[30 * part : 30 * part + 30]]
        lines.insert(7, json.dumps({"text": None, "other": 1}))
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    return [str(tmp_path / f"{part}.jsonl") for part in range(2)]


def opened(files, **options):
    sizes = {"batch_size": 3, "length": 8, "held_out_rows": 5, "batches_per_epoch": 7}
    return StreamingTextDataModule("json", data_files=files, **{**sizes, **options})


def ready(files, **options):
    data = opened(files, **options)
    data.setup("fit")
    return data


def test_windows_are_the_rows_one_after_the_other(files):
    data = ready(files, shuffle_buffer=1)
    text = "".join(f"{row}\n" for row in ROWS[5:] * 2).encode()  # again after the end
    windows = data.train_dataloader().dataset
    assert len(windows) == 7
    count = len(text) // 24 - 1
    inputs, targets = (torch.cat(parts).flatten() for parts in zip(*(windows[i] for i in range(count)), strict=True))
    assert bytes(inputs.tolist()) == text[: 24 * count]
    assert bytes(targets.tolist()) == text[1 : 24 * count + 1]
    held_out = torch.cat([batch.inputs for batch in data.val_dataloader()]).flatten()
    whole = "".join(f"{row}\n" for row in ROWS[:5]).encode()
    assert bytes(held_out.tolist()) == whole[: (len(whole) - 1) // 8 * 8]


def test_documents_reset(files):
    windows = ready(files, documents=True).train_dataloader().dataset
    for position in range(20):
        batch = windows[position]
        assert torch.equal(batch.reset[:, 1:], batch.inputs[:, :-1] == ord("\n"))
        assert torch.equal(batch.targets == IGNORED, batch.inputs == ord("\n"))


def rows(files, size, seed=0):
    table = datasets.load_dataset("json", data_files=files, streaming=True)["train"]
    return ShuffledRows(table, "text", size, seed)


def test_shuffle_buffer(files):
    """A row comes at most 9 draws before its turn, and each once, but for those that are still in the buffer."""
    first, again, other = rows(files, 10), rows(files, 10), rows(files, 10, seed=1)
    drawn = [first.draw() for _ in range(51)]  # the last row is in the buffer then
    assert drawn != ROWS[:51]
    assert all(ROWS.index(row) <= position + 9 for position, row in enumerate(drawn))
    assert sorted([*drawn, *first.buffer]) == sorted(ROWS)
    assert [again.draw() for _ in range(51)] == drawn
    assert [other.draw() for _ in range(51)] != drawn


@pytest.mark.parametrize("used", [0, 3, 40, 59, 61, 130])
def test_rows_continue_from_a_state(files, used):
    first, second = rows(files, 4), rows(files, 4)
    for _ in range(used):
        first.draw()
    second.load(json.loads(json.dumps(first.state())))  # plain values
    assert second.state() == first.state()
    assert [first.draw() for _ in range(100)] == [second.draw() for _ in range(100)]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("steps", [3, 7, 10])
def test_a_resumed_run_has_the_same_batches(files, tmp_path, recorder, trainer, steps, documents):
    options = {"documents": documents, "shuffle_buffer": 6}
    trainer(max_steps=20).fit(recorder, opened(files, **options))
    whole = list(recorder.inputs["train"])
    recorder.inputs["train"].clear()
    first = trainer(max_steps=steps)
    first.fit(recorder, opened(files, **options))
    first.save_checkpoint(tmp_path / "x.ckpt")
    assert "stream" in torch.load(tmp_path / "x.ckpt", weights_only=True)["StreamingTextDataModule"]
    trainer(max_steps=20).fit(recorder, opened(files, **options), ckpt_path=tmp_path / "x.ckpt")
    assert len(recorder.inputs["train"]) == len(whole) == 20
    assert all(map(torch.equal, recorder.inputs["train"], whole))


def test_positions_in_any_order(files):
    """Such as after an interruption within a step, or without a state in the checkpoint."""
    data, again = ready(files), ready(files).train_dataloader().dataset
    data.train_dataloader().dataset[3]
    windows = data.train_dataloader().dataset  # from the beginning
    batches = [windows[position].inputs for position in range(9)]
    assert windows.state_at(9)["position"] == 9
    assert windows.state_at(8)["position"] == 8
    assert windows.state_at(7) is None
    for position in (8, 8, 2, 5, 0):
        assert torch.equal(windows[position].inputs, batches[position])
    assert torch.equal(again[6].inputs, batches[6])


def test_processes_share_the_windows(files, monkeypatch):
    one = ready(files, batch_size=6).train_dataloader().dataset
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(StreamingTextDataModule, "processes", (rank, 2))
        ranks.append(ready(files).train_dataloader().dataset)
    for position in range(9):
        assert torch.equal(torch.cat([rank[position].inputs for rank in ranks]), one[position].inputs)


def test_validation_split_and_vocabulary_of_a_file(files, text_file):
    tokenizer = prepared(str(text_file), tokenizer="bpe", vocab_size=260).folder / "tokenizer.json"
    data = ready({"train": files[0], "validation": files[1]}, tokenizer=str(tokenizer), held_out_rows=4)
    assert data.input_size == data.output_size == 260
    assert data.tokenizer.decode(data.held_out[0].tolist()) == "".join(f"{row}\n" for row in ROWS[30:34])
    assert data.tokenizer.decode(data.train_dataloader().dataset[0].inputs[0].tolist())
    assert data.token_sizes[1][data.held_out[0].astype(int)].sum() == sum(len(f"{r}\n".encode()) for r in ROWS[30:34])


def test_characters_outside_the_vocabulary_are_refused(files, text_file):
    tokenizer = prepared(str(text_file)).folder / "tokenizer.json"
    with pytest.raises(InputError, match=r"^The text has characters outside the vocabulary: '0' ':'; leave them out"):
        ready(files, tokenizer=str(tokenizer))  # in the first of the held-out rows
    windows = StreamedWindows(rows(files, 1), char_tokenizer("abc 0\n"), (8, 3, 7))
    with pytest.raises(InputError, match=r"^The text has characters outside the vocabulary: ':'; leave"):
        windows[0]
    everything = char_tokenizer({*"\n", *chain(*ROWS)})
    assert everything.decode(encode_rows(everything, iter(ROWS))[0].tolist()) == "".join(f"{row}\n" for row in ROWS)


def test_words_are_separated_by_what_has_no_token(tmp_path):
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert encode_rows(words, iter(["one two", "two"]))[0].tolist() == [0, 1, 1]


def test_rows_are_whole(files, tmp_path):
    """Whatever length a tokenizer.json cuts texts to, or fills them up to."""
    for setting in ("enable_truncation", "enable_padding"):
        limited = byte_tokenizer()
        getattr(limited, setting)(**{"max_length": 4} if setting == "enable_truncation" else {"length": 50})
        limited.save(str(tmp_path / f"{setting}.json"))
        data, expected = ready(files, tokenizer=str(tmp_path / f"{setting}.json")), ready(files)
        assert data.held_out[0].tolist() == expected.held_out[0].tolist()
        saved = {"data": {"tokenizer": limited.to_str()}}  # of a checkpoint
        assert tokenizer_of(saved).encode("a prompt").ids == list(b"a prompt")


def test_another_vocabulary_or_data_set(files, text_file):
    data = ready(files)
    bytes_ = data.state_dict()
    tokenizer = str(prepared(str(text_file), tokenizer="bpe", vocab_size=260).folder / "tokenizer.json")
    with pytest.raises(InputError, match="another vocabulary than these data"):
        ready(files, tokenizer=tokenizer).load_state_dict(bytes_)
    with pytest.warns(UserWarning, match=r"was trained on another text \(other\) than json .*: it is begun anew"):
        data.load_state_dict({**bytes_, "corpus": "other"})


def test_bad_arguments(files, tmp_path):
    for name in ("shuffle_buffer", "held_out_rows", "batches_per_epoch"):
        with pytest.raises(InputError, match=rf"^{name} must be at least 1, got 0$"):
            opened(files, **{name: 0})
    with pytest.raises(InputError, match=r"^num_workers must be 0, as the training process reads the stream, got 2"):
        opened(files, num_workers=2)
    with pytest.raises(InputError, match=r"^tokenizer must be byte or a file of the package tokenizers, got char"):
        opened(files, tokenizer="char")
    (tmp_path / "bad.json").write_text("no vocabulary")
    with pytest.raises(
        InputError, match=r"^tokenizer must be byte or a file of the package tokenizers, got .*bad.json \("
    ):
        opened(files, tokenizer=str(tmp_path / "bad.json")).input_size  # noqa: B018
    message = "json needs a split train with a column words, but has train: text, other"
    streamed = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    if not streamed.column_names:  # with datasets 3.0
        message = "column must be one of text, other, got words"
    with pytest.raises(InputError, match=f"^{message}"):
        ready(files, column="words")
    with pytest.raises(InputError, match=r"^column must be one of text, got words"):  # where it is known only now
        next(rows_of([{"text": "a"}], "words"))
    with pytest.raises(InputError, match=r"^The column other holds int instead of text; name another of text, other"):
        ready(files, column="other")
    with pytest.raises(InputError, match=r"^data_files must be files that the format json can read, got \['.*nowhere"):
        ready([str(tmp_path / "nowhere.jsonl")])
    (tmp_path / "none.jsonl").write_text('{"text": null}\n' * 3)
    with pytest.raises(InputError, match=r"^no row beside those of held_out_rows has text in its column text; name"):
        rows([str(tmp_path / "none.jsonl")], 2).draw()
    assert list(islice(rows_of([{"text": "a"}, {"text": None}, {"text": ""}], "text"), 5)) == ["a", ""]
