"""Data sets of the Hugging Face Hub become text."""

import warnings

import datasets
import pytest
from prepared_text import prepared, text_of

from minrnn_lightning.data import TextDataModule


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set."""
    parts = {"train": ["first document", "second"] * 20, "test": ["third and last"] * 3}
    found = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": rows}) for name, rows in parts.items()})

    def load(name, subset):
        if (name, subset) != ("owner/name-1.0", "small"):
            raise ConnectionError("no such data set\nand more")
        return found

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_hub(hub, tokenizer):
    data = prepared("owner/name-1.0", tokenizer=tokenizer, subset="small", vocab_size=257)
    text = "\n".join(["first document", "second"] * 20)
    cut = int(0.9 * len(text))
    assert (text_of(data, "train"), text_of(data, "validation")) == (text[:cut], text[cut:])
    assert text_of(data, "test") == "\n".join(["third and last"] * 3)
    assert len(data.test_dataloader().dataset.batches[0]) == 2


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_tuning_on_a_hub_data_set_without_validation_split(hub, tokenizer):
    data = prepared("owner/name-1.0", tokenizer=tokenizer, subset="small", vocab_size=257, tuning=True)
    text = "\n".join(["first document", "second"] * 20)
    end = int(0.9 * len(text))
    cut = int(0.9 * end)
    assert sorted(data.splits) == ["train", "validation"]
    assert (text_of(data, "train"), text_of(data, "validation")) == (text[:cut], text[cut:end])


def test_bad_hub(hub, text_file, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^other/name is neither a file here nor .* \(no such data set\)$"):
        TextDataModule("other/name").input_size  # noqa: B018
    with pytest.raises(ValueError, match="needs a split train with a column words, but has train: text; test: text"):
        TextDataModule("owner/name-1.0", subset="small", column="words").input_size  # noqa: B018
    with pytest.raises(FileNotFoundError, match="leads to no file"):
        TextDataModule("owner/name.txt").input_size  # noqa: B018
    monkeypatch.chdir(text_file.parent.parent)
    assert TextDataModule(f"{text_file.parent.name}/{text_file.name}").input_size == 10


def hub_of(monkeypatch, **parts):
    found = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name, columns in parts.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: found)


def test_hub_rows_without_text_are_left_out(monkeypatch):
    hub_of(monkeypatch, train={"text": ["one two ", None, "three ", ""] * 9}, validation={"text": [None, "two one"]})
    texts = TextDataModule("someone/chat").texts()
    assert texts == {"train": "\n".join(["one two ", "three ", ""] * 9), "validation": "two one"}
    hub_of(monkeypatch, train={"text": [None, None]})
    with pytest.raises(ValueError, match=r"^someone/chat is empty; give a file with text$"):
        prepared("someone/chat")


@pytest.mark.parametrize(
    ("rows", "kind"), [([1, 2], "int"), ([["a"], ["b"]], "list"), ([b"a"], "bytes"), ([None, {"a": "b"}], "dict")]
)
def test_hub_column_that_is_no_text(monkeypatch, rows, kind):
    hub_of(monkeypatch, train={"text": rows, "other": ["a"] * len(rows)})
    with pytest.raises(
        ValueError,
        match=rf"^The column text of someone/chat holds {kind} instead of text; name another of text, other with col",
    ):
        prepared("someone/chat")


def test_tuning_on_the_training_rows(monkeypatch):
    hub_of(monkeypatch, train={"text": ["0123456789"] * 10}, validation={"text": ["v"]}, test={"text": ["t"]})
    text = "\n".join(["0123456789"] * 10)
    cut = int(0.9 * len(text))
    assert TextDataModule("someone/chat", tuning=True).texts() == {"train": text[:cut], "validation": text[cut:]}


def test_hub_part_without_the_column(monkeypatch):
    hub_of(monkeypatch, train={"text": ["a"]}, validation={"words": ["a"]})
    with pytest.raises(
        ValueError, match="needs a split validation with a column text, but has train: text; validation: w"
    ):
        TextDataModule("someone/chat").texts()


def test_hub_documents_in_two_parts(monkeypatch):
    rows = [f"{number} " * 30 for number in range(20)]
    hub_of(
        monkeypatch, train={"text": [*rows, "a"]}, validation={"text": ["other " * 60, *rows[:1]]}, test={"text": ["x"]}
    )
    share = round(100 * 60 / (360 + 60))
    with pytest.warns(
        UserWarning, match=f"^{share}% of the split validation of someone/chat are documents that its split"
    ):
        TextDataModule("someone/chat").texts()
    hub_of(monkeypatch, train={"text": [*rows, "a"]}, validation={"text": ["other " * 60, "a"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a short row is no leak
        TextDataModule("someone/chat").texts()


def test_each_column_has_its_own_tokens(monkeypatch, tmp_path):
    columns = {"text": ["the first column "] * 9, "summary": ["another one "] * 9}
    hub_of(monkeypatch, train=columns)
    found = [prepared("someone/chat", data_dir=str(tmp_path), tokenizer="byte", column=name) for name in columns]
    for data, rows in zip(found, columns.values(), strict=True):
        assert text_of(data, "train") + text_of(data, "validation") == "\n".join(rows)
    assert found[0].corpus != found[1].corpus
