"""Every benchmark command writes what it measured, compares, and answers bad input with one sentence."""

import csv
import json
import sys
from functools import partial

import pytest
import torch
from lra_files import write_retrieval
from rl_files import write_d4rl

from minrnn_lightning.commands.benchmark import chunks, policy, step, train
from minrnn_lightning.commands.benchmark.layer import LAYERS
from minrnn_lightning.errors import InputError

SMALL = {
    "layer": ["--lengths=[5,8]", "--batch_size=2", "--dim=4", "--repeats=1"],
    "scan": ["--lengths=5,8", "--batch_size=2", "--dim=4", "--repeats=1"],
    "generate": ["--lengths=5,8", "--dim=8", "--depth=1", "--steps=2", "--repeats=1"],
    "step": ["--lengths=5,8", "--batch_size=2", "--dim=8", "--mixer=mingru", "--products", "--steps=2", "--repeats=3"],
    "policy": ["--lengths=5,8", "--dim=8", "--depth=1", "--steps=2", "--repeats=1", "--mixer=mingru"],
    "accuracy": ["--lengths=5,8", "--dim=4"],
    "chunks": ["--lengths=5,8", "--chunk=4", "--dim=4", "--repeats=1"],
    "train": ["--config=shakespeare", "--model.dim=8", "--model.depth=1", "--data.batch_size=2", "--data.length=16"],
}
NAMES = {
    "layer": {name for name, _ in LAYERS.values()} - {"mingru-scans"},  # not always installed
    "scan": {
        *("forward: copying as many bytes", "forward: linear_scan", "forward: gated_scan, positive"),
        *("forward: gated_scan, identity", "backward: copying as many bytes", "backward: linear_scan"),
        *("backward: gated_scan, positive", "backward: gated_scan, identity", "forward + backward: linear_scan"),
        *("forward + backward: gated_scan, positive", "forward + backward: gated_scan, identity"),
        "forward + backward: the paper's log-space scan",
    },
    "generate": {"mingru", "minlstm", "nn.GRU", "transformer with a cache of keys and values"},
    "step": {
        *("MinGRU", "MinLSTM", "nn.GRU", "nn.LSTM", "blocks of mingru"),
        *("products of MinGRU", "products of MinLSTM", "products of blocks of mingru"),
    },
    "policy": {"mingru, compact", "mingru, decision_transformer", policy.TRANSFORMER, policy.ALONE},
    "accuracy": {"gated_scan", "the paper's log-space scan"},
    "chunks": {"chunks of 4", chunks.WHOLE},
    "train": {train.PRODUCTS, train.STEP, train.LOG_SPACE},
}
TIMES = {"ms", "ms_min", "ms_max", "us_per_token"}
FIGURES = {
    "layer": TIMES | {"peak_mb"},
    "scan": TIMES | {"peak_mb"},
    "generate": {"ms", "ms_min", "ms_max", "tokens_per_s", "state_kb", "parameters_m"},
    "step": TIMES
    | {"batch_size", "dim"}
    | {f"times_{base}{end}" for base in ("gru", "lstm") for end in ("", "_low", "_high")},
    "policy": {"ms", "ms_min", "ms_max", "env_steps_per_s"},
    "accuracy": {"float32", "bfloat16", "float16"},
    "chunks": TIMES | {"peak_mb"},
    "train": TIMES | {"peak_mb"},
}


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    monkeypatch.setattr(train, "REPEATS", 1)


def check_refused(result, *parts, code=1):
    got, _, errors = result
    assert got == code, errors
    sentence = errors.strip().splitlines()[-1]
    assert sentence.startswith("minrnn: "), errors
    assert all(part in sentence for part in parts), sentence
    assert "Traceback" not in errors


@pytest.mark.parametrize("kind", SMALL)
def test_writes_table_json_csv_and_plot(minrnn, tmp_path, kind):
    code, out, errors = minrnn("benchmark", kind, *SMALL[kind], f"--output={tmp_path}/new/folder")
    assert code == 0, errors
    folder = tmp_path / "new/folder"
    assert {file.name for file in folder.iterdir()} == {f"{kind}.{ending}" for ending in ("json", "csv", "png")}
    record = json.loads((folder / f"{kind}.json").read_text())
    assert record["benchmark"] == kind
    assert {"device", "cpu", "threads", "python", "torch", "minrnn-lightning"} <= set(record["about"])
    lengths = {16} if kind == "train" else {5, 8}
    found = {(row["name"], row["length"]) for row in record["rows"]}
    assert found >= {(name, length) for name in NAMES[kind] for length in lengths}
    assert {name for name, _ in found} <= NAMES[kind] | {"mingru-scans"}
    own = {"times_products", "times_products_low", "times_products_high"}  # of rows whose products are a row
    known = {"difference"} if kind == "chunks" else set()  # of the first of two rows
    assert all(set(row) - own - known == {"name", "length"} | FIGURES[kind] for row in record["rows"])
    assert {row["name"] for row in record["rows"] if own <= set(row)} == {
        name.removeprefix(step.PRODUCTS) for name in NAMES[kind] if name.startswith(step.PRODUCTS)
    }
    assert all(name in out for name in NAMES[kind])
    assert "1.00" in out or kind == "accuracy"  # the ratio to a baseline
    with (folder / f"{kind}.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["name"], int(row["length"])) for row in rows] == [(r["name"], r["length"]) for r in record["rows"]]
    assert (folder / f"{kind}.png").read_bytes().startswith(b"\x89PNG")

    code, out, errors = minrnn("benchmark", kind, *SMALL[kind], f"--compare={folder}/{kind}.json")
    assert code == 0, errors
    assert "The earlier run had the same setting." in errors
    assert "earlier" in out


def training_rows(minrnn, folder, *words):
    """The rows of ``benchmark train`` with these options, and what it prints."""
    code, out, errors = minrnn("benchmark", "train", *words, f"--output={folder}/timed")
    assert code == 0, errors
    return json.loads((folder / "timed/train.json").read_text())["rows"], out


@pytest.mark.parametrize("of", ["trajectories", "pairs"])
def test_length_of_training_rows_is_in_steps(minrnn, tmp_path, of):
    if of == "trajectories":
        write_d4rl(tmp_path / "x.hdf5", [30, 20, 40])
        words, length = ["--model=PolicyTask", "--data=TrajectoryDataModule", f"--data.dataset={tmp_path}/x.hdf5"], 20
    else:
        write_retrieval(tmp_path / "lra_release/lra_release/tsv_data")
        words, length = ["--model=ClassificationTask", "--model.pairs=true", "--data=RetrievalDataModule"], 2 * 20
    words += ["--model.dim=8", "--model.depth=1", "--data.batch_size=2", "--data.length=20"]
    rows, out = training_rows(minrnn, tmp_path, *words, f"--data.data_dir={tmp_path}")
    assert f"A batch of 2 × {length}" in out
    for row in rows:
        assert row["length"] == length
        assert row["us_per_token"] == pytest.approx(1e3 * row["ms"] / (2 * length))


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("32-true", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("16-true", torch.float16),
        ("64-true", torch.float64),
        ("bf16-mixed", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_products_have_the_types_of_the_training_step(minrnn, tmp_path, monkeypatch, precision, expected, compiled):
    noted = []

    def products(linears):
        noted.extend(linears.operands)
        raise InputError("that is all")

    monkeypatch.setattr(train.Linears, "products", products)
    words = [f"--trainer.precision={precision}", f"--model.compile={compiled}"]
    check_refused(minrnn("benchmark", "train", *SMALL["train"], *words), "that is all")
    assert {operand.dtype for pair in noted for operand in pair} == {expected}


def test_a_model_without_the_scan_is_not_timed_with_the_paper_s(minrnn, tmp_path):
    for mixer, names in (("attention", set()), ('["attention","mingru"]', {train.LOG_SPACE})):
        rows, _ = training_rows(minrnn, tmp_path, *SMALL["train"], "--model.depth=2", f"--model.mixer={mixer}")
        assert {row["name"] for row in rows} == {train.PRODUCTS, train.STEP} | names


def test_says_in_what_the_earlier_run_differed(minrnn, tmp_path):
    minrnn("benchmark", "accuracy", *SMALL["accuracy"], f"--output={tmp_path}")
    words = ["--lengths=8", "--dim=3", f"--compare={tmp_path}/accuracy.json"]
    code, _, errors = minrnn("benchmark", "accuracy", *words)
    assert code == 0
    assert "The earlier run had dim 4 (now 3)." in errors


def test_ratio_to_the_earlier_run(minrnn, tmp_path):
    minrnn("benchmark", "accuracy", "--lengths=8", "--dim=3", f"--output={tmp_path}")
    file = tmp_path / "accuracy.json"
    record = json.loads(file.read_text())
    for row in record["rows"]:
        row["float32"] /= 4
    file.write_text(json.dumps(record))
    code, out, _ = minrnn("benchmark", "accuracy", "--lengths=8", "--dim=3", f"--compare={file}")
    assert code == 0
    assert out.count("4.00") == len(record["rows"])


@pytest.mark.parametrize("words", [["--lengths", "7"], ["--lengths=7,9"], ["--lengths=[7,9]"]])
def test_forms_of_lengths(minrnn, tmp_path, words):
    code, _, errors = minrnn("benchmark", "accuracy", *words, "--dim=2", f"--output={tmp_path}")
    assert code == 0, errors
    lengths = {row["length"] for row in json.loads((tmp_path / "accuracy.json").read_text())["rows"]}
    assert lengths == ({7, 9} if "9" in words[-1] else {7})


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_types(minrnn, tmp_path, dtype):
    """What cannot run in a type is left out with a line; the rest is measured."""
    for kind in ("layer", "scan", "generate", "step"):
        code, _, errors = minrnn("benchmark", kind, *SMALL[kind], f"--dtype={dtype}", f"--output={tmp_path}")
        assert code == 0, errors
        assert "Traceback" not in errors
        names = {row["name"] for row in json.loads((tmp_path / f"{kind}.json").read_text())["rows"]}
        left = {line.partition(" is left out: ")[0] for line in errors.splitlines() if " is left out: " in line}
        assert names | left >= NAMES[kind]
        ours = {"MinGRU", "MinLSTM", "mingru", "minlstm", "blocks of mingru"} | {
            name for name in NAMES["scan"] if "_scan" in name
        }
        assert not left & ours


def test_some_layers(minrnn, tmp_path):
    words = ["--lengths=5", "--batch_size=2,3", "--dim=4,8", "--repeats=1", "--layers=mingru,gru", "--blocks=2"]
    code, out, _ = minrnn("benchmark", "layer", *words, f"--output={tmp_path}")
    assert code == 0
    rows = json.loads((tmp_path / "layer.json").read_text())["rows"]
    assert {(row["batch_size"], row["dim"]) for row in rows} == {(2, 4), (2, 8), (3, 4), (3, 8)}
    initial = 4 / 5  # a state for each sequence of 5 steps
    for row in rows:
        if row["name"] == "MinGRU":  # gate, candidate and states
            assert row["kept_bytes"] == pytest.approx((3 * 4 + initial) * row["dim"])
    assert any("backbone of 2" in row["name"] for row in rows)
    assert "MinGRU" in out
    assert "nn.GRU" in out
    assert "attention" not in out


def test_step_over_batch_sizes_and_widths(minrnn, tmp_path):
    """A row for each, with ratios to the row of the same setting; the number of threads is left as it was."""
    threads = torch.get_num_threads()
    words = ["--batch_size=1,3", "--dim=4,8", "--lengths=5", "--layers=gru,grucell", "--steps=2", "--repeats=4"]
    code, out, errors = minrnn("benchmark", "step", *words, "--threads=2", f"--output={tmp_path}")
    assert code == 0, errors
    record = json.loads((tmp_path / "step.json").read_text())
    assert (record["about"]["threads"], torch.get_num_threads()) == (2, threads)
    rows = {(row["name"], row["batch_size"], row["dim"]): row for row in record["rows"]}
    assert set(rows) == {(name, batch, dim) for name in ("nn.GRU", "nn.GRUCell") for batch in (1, 3) for dim in (4, 8)}
    for row in rows.values():
        low, middle, high = (row[f"times_gru{end}"] for end in ("_low", "", "_high"))
        assert low <= middle <= high
        assert (low == high == 1) == (row["name"] == "nn.GRU")
        assert (row["times_grucell"] == 1) == (row["name"] == "nn.GRUCell")
    assert "times nn.GRU" in out
    assert "times nn.LSTM" not in out

    rows["nn.GRU", 3, 8]["ms"] *= 1e6
    (tmp_path / "step.json").write_text(json.dumps(record))
    code, out, _ = minrnn("benchmark", "step", *words, "--threads=2", f"--compare={tmp_path}/step.json")
    lines = [line for line in out.splitlines() if line.startswith("│ nn.GRU ")]
    earlier = [line.split("│")[-2].strip() for line in lines]
    assert [ratio == "0.00" for ratio in earlier] == [False, False, False, True]


@pytest.mark.slow
def test_compiled(minrnn, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # its kernels take seconds
    code, out, errors = minrnn("benchmark", "layer", *SMALL["layer"], "--layers=mingru,gru", "--compile")
    assert code == 0, errors
    assert "MinGRU, compiled" in out
    assert "nn.GRU, compiled" not in out


@pytest.mark.slow
def test_the_checks_of_a_compiled_step(minrnn):
    words = ["--lengths=8", "--batch_size=1,2,3", "--dim=8", "--layers=none", "--mixer=mingru", "--steps=2"]
    code, out, errors = minrnn("benchmark", "step", *words, "--repeats=2", "--products", "--compile=checks")
    assert (code, "left out" in errors) == (0, False)
    assert sum(line.startswith("│ blocks of mingru ") for line in out.splitlines()) == 3


def test_without_peers_and_matplotlib(minrnn, tmp_path, monkeypatch):
    for module in ("minGRU_pytorch", "mingru", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    words = ["--layers=mingru,mingru-pytorch,mingru-scans", "--lengths=5", f"--output={tmp_path}"]
    code, out, errors = minrnn("benchmark", "layer", *SMALL["layer"][1:], *words)
    assert code == 0
    assert "MinGRU" in out
    assert errors.splitlines() == [
        "minGRU-pytorch is not installed and left out: pip install minGRU-pytorch",
        "mingru-scans is not installed and left out: pip install mingru-scans",
        'No plot without matplotlib: pip install "minrnn-lightning[benchmark]"',
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"layer.json", "layer.csv"}


@pytest.mark.parametrize("words", [[], ["everything"], ["--help"]])
def test_says_what_there_is(minrnn, words):
    check_refused(minrnn("benchmark", *words), "layer, scan, generate, step, policy, accuracy, export or train", code=2)


@pytest.mark.parametrize("kind", SMALL)
def test_help(minrnn, kind):
    code, out, _ = minrnn("benchmark", kind, "--help")
    assert code == 0
    options = ("output", "compare", "config") if kind == "train" else ("output", "compare", "lengths", "dim", "device")
    assert all(f"--{option}" in out for option in options)
    assert f"{kind}.json, {kind}.csv and {kind}.png" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["layer", "--dim=0"], ["dim must be at least 1, got '0'"]),
        (["layer", "--blocks=-1"], ["blocks must be from 0 to 10000, got -1"]),
        (["scan", "--repeats=-3"], ["repeats must be at least 1, got -3"]),
        (["generate", "--steps=0"], ["steps must be at least 1, got 0"]),
        (["layer", "--lengths=many"], ["lengths", "512,2048", "'many'"]),
        (["accuracy", "--lengths=4,0"], ["lengths must be at least 1, got '4,0'"]),
        (["scan", "--lengths="], ["lengths", "''"]),
        (["layer", "--layers=mingru,s5"], ["'s5'", ",".join(LAYERS)]),
        (["generate", "--mixer=s5"], ["mixer", "'s5'", "mingru"]),
        (["step", "--batch_size=8,none"], ["batch_size must be whole numbers from 1", "8,64", "'8,none'"]),
        (["step", "--dim=0"], ["dim must be at least 1, got '0'"]),
        (["step", "--layers=mingru,s5"], ["layers", "'s5'", ",".join(step.LAYERS)]),
        (["step", "--mixer=s5"], ["mixer", "'s5'", "mingru"]),
        (["step", "--threads=0"], ["threads must be at least 1, got 0"]),
        (["step", "--threads=2", "--processor_time"], ["processor_time is for one thread", "got threads 2"]),
        (["step", "--layers=none"], ["layers and mixer are both none"]),
        (["policy", "--env=Hoper-v5"], ["Gymnasium cannot make the environment 'Hoper-v5'"]),
        (["policy", "--env=CartPole-v1"], ["env must have vectors of real numbers", "Hopper-v5", "got CartPole-v1"]),
        (["layer", "--device=tpu"], ["device must be cpu, or cuda", "got 'tpu'"]),
        (["scan", "--device=cuda:99"], ["device must be cpu, or cuda", "got 'cuda:99'"]),
        (["accuracy", "--device=meta"], ["device must be cpu, or cuda", "got 'meta'"]),
        (["layer", "--compare=none.json"], ["none.json", "No such file"]),
        (["train", "--config=shakespeare", "--repeats=0"], ["repeats must be at least 1, got 0"]),
        (["train", "--config=nowhere"], ["nowhere is neither a file nor a packaged recipe"]),
    ],
)
def test_bad_values(minrnn, words, parts):
    check_refused(minrnn("benchmark", *words), *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["layer", "--dtype=int8"], ["dtype", "'float32', 'bfloat16', 'float16', 'float64'", "int8"]),
        (["scan", "--dim=wide"], ["dim must be a whole number, got wide"]),
        (["layer", "--colour=red"], ["--colour=red"]),
        (["train", "--config=shakespeare", "--compare"], ["--compare", "expected one argument"]),
    ],
)
def test_bad_options(minrnn, words, parts):
    check_refused(minrnn("benchmark", *words), *parts, code=2)


@pytest.mark.parametrize(
    "content", ["", "PNG", "[1]", '{"rows": []}', '{"benchmark": "scan", "about": {}, "rows": [3]}', "\x00"]
)
def test_compare_with_another_file(minrnn, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    check_refused(
        minrnn("benchmark", "scan", f"--compare={tmp_path}/x.json"), "x.json is not a file to compare with", "scan.json"
    )


def test_compare_with_another_benchmark(minrnn, tmp_path):
    minrnn("benchmark", "accuracy", *SMALL["accuracy"], f"--output={tmp_path}")
    result = minrnn("benchmark", "layer", f"--compare={tmp_path}/accuracy.json")
    check_refused(result, "is of `minrnn benchmark accuracy`", "layer.json")


def test_output_that_cannot_be_made(minrnn, tmp_path):
    (tmp_path / "file").touch()
    for folder in ("file", "file/inside"):
        check_refused(minrnn("benchmark", "accuracy", "--lengths=5", f"--output={tmp_path}/{folder}"), "file")


def test_chunks_have_the_gradient_of_all_steps(minrnn, tmp_path):
    words = ["--lengths=40,50", "--chunk=16", "--dim=8", "--repeats=1", "--longest_whole=45", f"--output={tmp_path}"]
    assert minrnn("benchmark", "chunks", *words)[0] == 0
    rows = json.loads((tmp_path / "chunks.json").read_text())["rows"]
    assert [(row["name"], row["length"]) for row in rows] == [
        ("chunks of 16", 40), (chunks.WHOLE, 40), ("chunks of 16", 50)
    ]  # fmt: skip
    assert rows[0]["difference"] < 1e-5
