"""Reading checkpoints: intact, damaged and foreign ones; loading the tensors that fit."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minrnn_lightning.checkpoint import (
    CheckpointError,
    check_fits,
    load_matching,
    read_checkpoint,
    tokenizer_of,
)
from minrnn_lightning.checkpoint_io import AtomicCheckpointIO
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks import LanguageTask


def task(**changes) -> LanguageTask:
    return LanguageTask(**{"input_size": 11, "output_size": 11, "dim": 8, "depth": 2, **changes})


def save(model, file, **parts):
    torch.save({"state_dict": model.state_dict(), **parts}, file)
    return file


def test_reads_what_was_written(tmp_path):
    model = task()
    read = read_checkpoint(save(model, tmp_path / "x.ckpt", hyper_parameters={"dim": 8}))
    assert read["hyper_parameters"] == {"dim": 8}
    assert all(torch.equal(read["state_dict"][name], tensor) for name, tensor in model.state_dict().items())


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"step": 1}}, file)

    write = Path.write_bytes

    def full(path, content):
        write(path, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"step": 2}}, file)
    assert read_checkpoint(file)["state_dict"] == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_signal_handler_may_write_a_checkpoint_while_one_is_written(tmp_path):
    class Interruption:  # what Lightning's handler of Slurm's signal does
        def __reduce__(self):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"step": 1}}, tmp_path / "hpc_ckpt_1.ckpt")
            return OrderedDict, ()

    AtomicCheckpointIO().save_checkpoint({"state_dict": {"step": Interruption()}}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")["state_dict"] == {"step": 1}
    assert read_checkpoint(tmp_path / "last.ckpt")["state_dict"] == {"step": {}}
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_file_and_folder(tmp_path):
    for path, reason in ((tmp_path / "none.ckpt", "there is no such file"), (tmp_path, "it holds no config.json")):
        with pytest.raises(InputError, match=reason):
            read_checkpoint(path)


class Evil:
    """Writes a file if it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    file, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save({"state_dict": {}, "evil": Evil(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt is not a checkpoint of plain tensors"):
        read_checkpoint(file)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"state_dict": {}}), b"PK\x03\x04" + bytes(100)])
def test_foreign_files(tmp_path, content):
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, cut short or from another program"):
        read_checkpoint(file)


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, torch.ones(2), {"state_dict": 3}])
def test_files_of_other_torch_programs(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of Lightning"):
        read_checkpoint(tmp_path / "x.ckpt")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(tmp_path, share):
    intact = save(task(), tmp_path / "intact.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(intact[: int(share * len(intact))])
    with pytest.raises(CheckpointError, match="cut short"):
        read_checkpoint(cut)


def test_a_changed_weight_is_noticed(tmp_path):
    model = task()
    file = save(model, tmp_path / "x.ckpt")
    content = bytearray(file.read_bytes())
    position = content.find(model.state_dict()["encoder.weight"].numpy().tobytes())
    content[position + 10] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(file)


def test_load_matching_takes_what_fits(tmp_path):
    old = task()
    new = task(input_size=7, output_size=7, depth=3)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    taken, left = load_matching(new, save(old, tmp_path / "x.ckpt"))
    after = new.state_dict()
    assert sorted(taken + left) == sorted(after)
    assert {"encoder.weight", "head.weight"} < set(left)
    assert all(name.startswith(("backbone.blocks.2.", "encoder.", "head.")) for name in left)
    assert all(torch.equal(after[name], old.state_dict()[name]) for name in taken)
    assert all(torch.equal(after[name], before[name]) for name in left)


def test_load_matching_refuses_another_model(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.ones(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"no tensor whose name and shape fit LanguageTask"):
        load_matching(task(), tmp_path / "x.ckpt")


def test_check_fits(tmp_path):
    model = task()
    check_fits(model, {"state_dict": model.state_dict()}, "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt does not fit this LanguageTask: .*--model\.init_from"):
        check_fits(model, {"state_dict": task(dim=16).state_dict()}, "x.ckpt")
    with pytest.raises(CheckpointError, match=r"backbone\.blocks\.1\.\S+ is missing in the model"):
        check_fits(task(depth=1), {"state_dict": model.state_dict()}, "x.ckpt")


def test_tokenizer_is_that_of_the_data(checkpoint, text):
    read = read_checkpoint(checkpoint)
    assert isinstance(tokenizer_of(read), Tokenizer)
    assert set(tokenizer_of(read).get_vocab()) == set(text.read_text())
    del read["TextDataModule"]
    with pytest.raises(CheckpointError, match="mine holds no vocabulary"):
        tokenizer_of(read, "mine")


def test_checkpoints_hold_plain_values(checkpoint):
    saved = read_checkpoint(checkpoint)["hyper_parameters"]
    assert saved["dim"] == 16
    assert "init_from" not in saved
    assert LanguageTask.load_from_checkpoint(checkpoint).backbone.norm.normalized_shape == (16,)
