"""Two real processes share the batches: none is met twice, none is lost."""

import pytest
import torch
from forked import run_two

from minrnn_lightning.data import TextDataModule

SCRIPT = """
import torch
from lightning.pytorch import Trainer
from recording_module import RecordingModule
from minrnn_lightning.data import TextDataModule

if __name__ == "__main__":
    for num_workers in (0, 1):
        data = TextDataModule({text!r}, batch_size=4, length=20, num_workers=num_workers)
        trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
                          enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0)
        model = RecordingModule()
        trainer.fit(model, data)
        trainer.test(model, data)
        torch.save(model.inputs, {folder!r} + f"/seen{{num_workers}}{{trainer.global_rank}}")
"""


@pytest.mark.slow
def test_two_processes(text_file, tmp_path, recorder, trainer):
    (tmp_path / "script.py").write_text(SCRIPT.format(text=str(text_file), folder=str(tmp_path)))
    run_two([tmp_path / "script.py"], tmp_path)
    data = TextDataModule(str(text_file), batch_size=8, length=20)
    trainer(max_epochs=2).fit(recorder, data)
    trainer().test(recorder, data, verbose=False)
    for num_workers in (0, 1):
        seen = [torch.load(tmp_path / f"seen{num_workers}{rank}", weights_only=True) for rank in range(2)]
        for part, whole in recorder.inputs.items():
            shared = [torch.cat(batches) for batches in zip(seen[0][part], seen[1][part], strict=True)]
            assert torch.equal(torch.cat(shared), torch.cat(whole)), (num_workers, part)
        assert {len(batch) for rank in seen for batch in rank["test"]} == {2, 3}
