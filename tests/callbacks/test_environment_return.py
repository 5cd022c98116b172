"""EnvironmentReturn logs what a rollout gives, at the validations that it is asked for."""

import lightning.pytorch as pl
import pytest
from acting import Nothing, fitted, policy
from lightning.pytorch.callbacks import Timer

from minrnn_lightning.callbacks import EnvironmentReturn
from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.errors import InputError
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


@pytest.mark.parametrize(
    ("limits", "validations"),
    [
        ({"max_epochs": 1}, [False, True, True]),
        ({"max_epochs": 3, "limit_train_batches": 2, "val_check_interval": 1.0}, [False, True, True]),
        ({"max_time": {"seconds": 1}}, [True]),
        ({"max_steps": 6}, [False, True, True]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_rollout_after_the_last_step(tmp_path, monkeypatch, limits, validations):
    """After the second validation, and after the last one, whatever ends the training."""
    play, rollouts = EnvironmentReturn(episodes=1, every_n_validations=2), []
    monkeypatch.setattr(play, "_rollout", lambda *args: rollouts.append(True))
    seen = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(bool(rollouts))
            rollouts.clear()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=[play, Note()], **{**quiet, "val_check_interval": 2, **limits})
    monkeypatch.setattr(Timer, "time_elapsed", lambda *args: trainer.global_step)  # a second for each step
    trainer.fit(policy("CartPole-v1").train(), Nothing("CartPole-v1"))
    assert seen == validations


def test_a_target_that_nothing_names_is_refused_before_the_training(tmp_path):
    task = policy("CartPole-v1").train()
    loader = Nothing("CartPole-v1").train_dataloader()
    trainer = pl.Trainer(
        callbacks=[EnvironmentReturn("CartPole-v1")], max_steps=2, logger=False, default_root_dir=tmp_path
    )
    with pytest.raises(InputError, match=r"conditioned on a target return, .* give targets, such as \[3600\]"):
        trainer.fit(task, loader, loader)
    assert trainer.global_step == 0
    with pytest.raises(InputError, match=r"give targets, such as \[3600\]"):
        trainer.validate(task, loader, verbose=False)


@pytest.mark.parametrize("env_id", [None, "CartPole-v1"])
def test_arguments_are_those_of_the_data(tmp_path, env_id):
    options = {"callbacks": [EnvironmentReturn(env_id, episodes=2)], "enable_checkpointing": False}
    trainer, _ = fitted(tmp_path, "CartPole-v1", {"max_episode_steps": 3}, **options)
    assert trainer.callback_metrics["val/return"] == 3


def test_callback_without_references_asks_for_the_best_return(tmp_path):
    trainer, task = fitted(
        tmp_path, "CartPole-v1", callbacks=[EnvironmentReturn(episodes=1)], enable_checkpointing=False
    )
    (metrics,) = trainer.validate(task, Nothing("CartPole-v1"), verbose=False)
    assert set(metrics) == {"val/loss", "val/return", "val/return/25"}
