"""EnvironmentReturn logs what a rollout gives, at the validations that it is asked for."""

import lightning.pytorch as pl
import pytest
from acting import Nothing, fitted

from minrnn_lightning.callbacks import EnvironmentReturn
from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.rl.rollout import rollout


def test_callback_logs_what_a_rollout_gives(tmp_path):
    seen = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append("val/return" in trainer.callback_metrics)
            trainer.callback_metrics.pop("val/return", None)

    play = EnvironmentReturn(episodes=2, targets=[20.0, 3600.0], every_n_validations=2, seed=5)
    trainer, task = fitted(tmp_path, "Hopper-v5", callbacks=[play, Note()], enable_checkpointing=False)
    assert seen == [False, False, True, True]  # sanity check, steps 2, 4 and 6, the last
    (metrics,) = trainer.test(task, Nothing("Hopper-v5"), verbose=False)
    played = rollout(task, "Hopper-v5", 2, [20.0, 3600.0], seed=5)
    for target, part in zip(("20", "3600"), played, strict=True):
        mean = sum(part.returns) / 2
        assert metrics[f"test/return/{target}"] == pytest.approx(mean, rel=1e-5)
        assert metrics[f"test/score/{target}"] == pytest.approx(normalized_score("Hopper-v5", mean), rel=1e-5)
    assert metrics["test/return"] == metrics["test/return/20"]


def test_callback_without_references_asks_for_the_best_return(tmp_path):
    trainer, task = fitted(
        tmp_path, "CartPole-v1", callbacks=[EnvironmentReturn(episodes=1)], enable_checkpointing=False
    )
    (metrics,) = trainer.validate(task, Nothing("CartPole-v1"), verbose=False)
    assert set(metrics) == {"val/loss", "val/return", "val/return/25"}
