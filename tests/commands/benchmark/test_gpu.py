"""``minrnn benchmark gpu``, on the processor and with small sizes."""

import json
from functools import partial

import pytest
import torch
import yaml

from minrnn_lightning.commands.benchmark import gpu, gpu_checks, train
from minrnn_lightning.commands.benchmark.scan import scan
from minrnn_lightning.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gpu_checks, "SHAPES", [(2, 1, 1), (3, 37, 19), (2, 60, 8)])
    monkeypatch.setattr(gpu_checks, "LARGE", (3, 50, 8))
    monkeypatch.setattr(gpu, "RESETS", (2, 8, 4, 0.1))
    small_scan = "scan", partial(scan, batch_size=2, dim=4, lengths="8")
    monkeypatch.setattr(gpu, "RUNS", {"scan-small": small_scan, "resets": ("resets", gpu.resets)})
    group = [("gated_scan, positive, forget gate", "float32")]
    monkeypatch.setattr(gpu, "check_all", lambda device: [gpu_checks.check_group(*each, device) for each in group])
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scan", gpu_checks.SCANS)
@pytest.mark.parametrize("dtype", gpu_checks.TOLERANCES)
def test_checks_pass(scan, dtype):
    row = gpu_checks.check_group(scan, dtype, CPU)
    assert (row["cases"], row["faults"]) == (6, [])
    assert 0 < row["states"] <= row["tolerance"]


@pytest.mark.usefixtures("small")
def test_checks_find_a_wrong_scan(monkeypatch):
    right = gpu_checks.linear_scan

    def wrong(decay, update, *rest, **options):
        h = right(decay, update, *rest, **options)
        return torch.cat([h[:, :-1], h[:, -1:] * 1.001], 1)

    monkeypatch.setattr(gpu_checks, "linear_scan", wrong)
    faults = gpu_checks.check_group("linear_scan", "float32", CPU)["faults"]
    assert any("error of the states" in fault for fault in faults)
    assert any("error of the gradients" in fault for fault in faults)


@pytest.mark.usefixtures("small")
def test_many_elements():
    assert gpu_checks.check_large(CPU)["faults"] == []


@pytest.mark.usefixtures("small")
def test_one_file_and_one_page(minrnn, tmp_path):
    code, out, errors = minrnn("benchmark", "gpu", "--device=cpu", "--repeats=1", f"--output={tmp_path}/gpu")
    assert code == 0, errors
    assert "Errors relative to the largest magnitude" in out
    record = json.loads((tmp_path / "gpu/gpu.json").read_text())
    assert list(record["runs"]) == ["scan-small", "resets"]
    assert record["runs"]["resets"]["rows"][0]["name"] == "MinGRU"
    page = (tmp_path / "gpu/gpu.md").read_text()
    assert all(text in page for text in ("## Checks", "## scan-small", "| forward: linear_scan | 8 |", "nn.GRUCell"))


@pytest.mark.usefixtures("small")
def test_a_failed_check_fails(monkeypatch, tmp_path):
    row = gpu_checks.check_group("linear_scan", "float32", CPU) | {"faults": ["wrong"]}
    monkeypatch.setattr(gpu, "check_all", lambda _: [row])
    with pytest.raises(RuntimeError, match="1 checks fail on cpu: linear_scan, float32: wrong"):
        gpu.gpu("none", "cpu", output=str(tmp_path))
    assert json.loads((tmp_path / "gpu.json").read_text())["checks"][0]["faults"] == ["wrong"]


@pytest.mark.parametrize("part", ["train", "train-compiled"])
@pytest.mark.parametrize(
    ("device", "accelerator", "devices"), [("cpu", "cpu", 1), ("cuda", "gpu", [0]), ("cuda:1", "gpu", [1])]
)
def test_training_on_the_device(monkeypatch, tmp_path, part, device, accelerator, devices):
    """The recipe is built for the device."""
    built = []

    class Built:
        def __init__(self, words):
            built.append(dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word))
            raise InputError("that is all")

    monkeypatch.setattr(train, "_Built", Built)
    with pytest.raises(InputError, match="that is all"):
        gpu.RUNS[part][1](device=device, repeats=3, output=str(tmp_path))
    (options,) = built  # the last one of each
    assert options["trainer.accelerator"] == accelerator
    assert yaml.safe_load(options["trainer.devices"]) == devices
    assert options.get("model.compile") == ("true" if part == "train-compiled" else None)


@pytest.mark.usefixtures("small")
def test_training_on_the_processor_as_often_as_asked_for(minrnn, monkeypatch, tmp_path):
    tiny = ["--model.dim=8", "--model.depth=1", "--data.batch_size=2", "--data.length=16"]
    run = partial(gpu.train_shakespeare, *tiny)
    monkeypatch.setattr(gpu, "RUNS", {"train": ("train", run)})
    code, _, errors = minrnn("benchmark", "gpu", "--device=cpu", "--repeats=2", f"--output={tmp_path}/gpu")
    assert code == 0, errors
    about = json.loads((tmp_path / "gpu/gpu.json").read_text())["runs"]["train"]["about"]
    assert (about["device"], about["repeats"]) == ("cpu", 2)


def test_bad_options(minrnn):
    for words, part in (
        (["--parts=scam", "--device=cpu"], "parts must be some of scan-float32,"),
        (["--device=cuda:99"], "device must be cpu, or cuda or cuda:N where PyTorch sees a GPU"),
    ):
        code, _, errors = minrnn("benchmark", "gpu", *words)
        assert code == 1
        assert part in errors
        assert "Traceback" not in errors
