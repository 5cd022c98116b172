"""Files are complete or absent; tables show every cell; a measurement names its machine and versions."""

import csv
import json

import pytest
import torch

from minrnn_lightning.results import (
    print_table,
    provenance,
    version,
    write_atomic,
    write_csv,
    write_json,
    write_markdown,
)

ROWS = [{"mixer": "mingru", "loss": "1.50"}, {"mixer": "gru", "loss": "1.25"}]


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_atomic(file, b"former")

    def fail(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert file.read_bytes() == b"former"


def test_json_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_csv_has_the_columns_of_all_rows(tmp_path):
    write_csv(tmp_path / "x.csv", [{"a": 1}, {"b": 2}])
    with (tmp_path / "x.csv").open() as lines:
        assert list(csv.DictReader(lines)) == [{"a": "1", "b": ""}, {"a": "", "b": "2"}]


def test_tables(tmp_path, capsys):
    print_table("Losses", ROWS, left=["mixer"])
    out = capsys.readouterr().out
    assert out.startswith("Losses")
    assert "│ mingru │ 1.50 │" in out
    assert "│ gru    │ 1.25 │" in out
    write_markdown(tmp_path / "x.md", ROWS)
    assert (tmp_path / "x.md").read_text() == "| mixer | loss |\n|---|---|\n| mingru | 1.50 |\n| gru | 1.25 |\n"


def test_provenance_is_plain():
    about = provenance(torch.device("cpu"))
    assert {"device", "cpu", "threads", "platform", "python", "torch", "minrnn-lightning"} <= set(about)
    assert json.loads(json.dumps(about)) == about
    assert version("no-such-package") is None
