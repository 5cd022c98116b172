"""``RolloutDataModule`` and ``PPOTask`` in a Trainer: the order of rollouts and steps, checkpoints, bad input."""

import math

import pytest
import torch
from online import agent, rollouts, trainer

from minrnn_lightning.rl.rollout import load_policy, rollout
from minrnn_lightning.rl.rollout_data import RolloutDataModule
from minrnn_lightning.tasks import PPOTask


class Recorded(PPOTask):
    """Records the batches, and the weights with which each was collected and trained."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen = [*getattr(self, "seen", []), (batch, self.last_kl.item())]
        return loss


def test_every_row_once_an_epoch_and_no_rollout_of_older_weights(tmp_path):
    data = rollouts()
    task = agent(data)
    task.__class__ = Recorded
    trainer(tmp_path, 12).fit(task, data)  # two rollouts of 2 epochs with 3 minibatches
    batches = [batch for batch, _ in task.seen]
    assert {len(batch.values) for batch in batches} == {2}
    for first in (0, 3, 6, 9):
        rows = torch.cat([batch.observations[:, 0] for batch in batches[first : first + 3]])
        assert len(rows.unique(dim=0)) == 6
    again = torch.cat([batch.observations[:, 0] for batch in batches[:6]])
    assert len(again.unique(dim=0)) == 6  # the second epoch has the rows of the first
    # Only for the first minibatch of a rollout are the weights those that acted.
    divergences = [kl for _, kl in task.seen]
    assert divergences[0] < 1e-9
    assert divergences[6] < 1e-9
    assert min(divergences[1:6] + divergences[7:]) > 1e-9


@pytest.mark.parametrize("kind", ["discrete", "several", "one of several", "continuous"])
def test_fit_logs_and_changes_every_parameter(tmp_path, kind):
    data = rollouts(kind)
    task = agent(data, previous_action=True)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    fit = trainer(tmp_path, 7, val_check_interval=7)
    fit.fit(task, data)
    assert [name for name, parameter in task.named_parameters() if torch.equal(parameter, before[name])] == []
    figures = fit.callback_metrics
    assert all(math.isfinite(value) for value in figures.values())
    parts = figures["train/policy_loss"] + 0.5 * figures["train/value_loss"] - 0.01 * figures["train/entropy"]
    torch.testing.assert_close(figures["train/loss"], parts)
    assert figures["env_steps"] == 3 * 6 * 24  # two rollouts, and one for the statistics alone
    names = {"train/kl", "train/clip_fraction", "train/return", "train/length", "val/return", "val/length"}
    assert names | {"collect_steps_per_s", "update_steps_per_s"} <= figures.keys()
    (returns,) = fit.predict(task, data)
    assert returns.shape == (2,)
    assert fit.validate(task, data, verbose=False)[0]["val/return"] == pytest.approx(returns.mean().item(), abs=1e-5)


def test_a_policy_that_has_diverged_gets_a_new_rollout(tmp_path):
    data = rollouts()
    task = agent(data, target_kl=1e-12, lr=0.01)
    task.__class__ = Recorded
    trainer(tmp_path, 4).fit(task, data)
    kept = [kl < 1e-9 for _, kl in task.seen]
    assert kept == [True, False, True, False]  # the second minibatch is the first at which the weights differ


def test_a_checkpoint_continues_statistics_generator_and_optimizer(tmp_path):
    data, file = rollouts(), tmp_path / "x.ckpt"
    task = agent(data)
    fit = trainer(tmp_path, 6)
    fit.fit(task, data)
    fit.save_checkpoint(file)
    saved = torch.load(file, weights_only=True)
    assert saved["RolloutDataModule"]["env_steps"] == 2 * 6 * 24
    other, again = rollouts(), agent(data, lr=1e-3)

    class Check(PPOTask):
        def on_train_start(self):
            assert torch.equal(other.generator.get_state(), saved["RolloutDataModule"]["generator"])
            assert other.env_steps == 2 * 6 * 24
            for name in ("observation_mean", "observation_std", "observation_count", "return_std"):
                assert torch.equal(getattr(self, name), saved["state_dict"][name])
            old = saved["optimizer_states"][0]["state"][0]["exp_avg"]
            assert torch.equal(self.optimizers().state_dict()["state"][0]["exp_avg"], old)
            self.checked = True

    again.__class__ = Check
    more = trainer(tmp_path, 8)
    more.fit(again, other, ckpt_path=file)
    assert again.checked
    assert more.global_step == 8
    assert other.env_steps == 3 * 6 * 24
    assert again.observation_count == 6 * 24  # that of the interrupted rollout is not in the checkpoint


def test_resumed_processes_collect_different_rollouts():
    """The first continues the saved generator; the others start from its first draws, the same in every resumption."""

    def of_rank(rank):
        data = rollouts()
        data.__class__ = type("OfRank", (RolloutDataModule,), {"processes": (rank, 3)})
        data.setup("fit")
        return data

    saved = of_rank(0).state_dict()
    generators = []
    for rank in (0, 1, 2, 2):
        data = of_rank(rank)
        data.load_state_dict(saved)
        generators.append(data.generator)
    assert torch.equal(generators[0].get_state(), saved["generator"])
    draws = [torch.rand(100, generator=each) for each in generators]
    assert torch.equal(draws[2], draws[3])
    assert not any((draws[one] == draws[other]).any() for one, other in ((0, 1), (0, 2), (1, 2)))


def test_a_loaded_policy_acts_as_in_training(tmp_path):
    data = rollouts("continuous")
    task = agent(data, previous_action=True)
    fit = trainer(tmp_path, 6)
    fit.fit(task, data)
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = load_policy(tmp_path / "x.ckpt")
    assert loaded.environment["env_args"] == {"kind": "continuous"}
    assert torch.equal(loaded.distribution.bounds.scale, torch.tensor([2.0, 5.0]))
    results = [rollout(each, "Signal-v0", 4, env_args={"kind": "continuous"})[0] for each in (task, loaded)]
    assert results[0].returns == results[1].returns


def test_a_resumed_run_has_the_environment_of_its_data(tmp_path):
    file = tmp_path / "x.ckpt"
    for steps, high in ((1, 10.0), (2, 20.0)):
        data = rollouts("continuous")
        data.env_args["high"] = high
        task, fit = agent(data), trainer(tmp_path, steps)
        fit.fit(task, data, ckpt_path=file if steps > 1 else None)
        assert task.distribution.bounds.scale.tolist() == [2, high / 2]
        fit.save_checkpoint(file)
    saved = torch.load(file, weights_only=True)["environment"]
    assert saved["env_args"] == {"kind": "continuous", "high": 20.0}
    assert saved["action_high"] == [2, 20]
    assert load_policy(file).distribution.bounds.scale.tolist() == [2, 10]


def test_two_runs_with_one_seed_are_equal(tmp_path):
    tasks = []
    for _ in range(2):
        data = rollouts()
        tasks.append(agent(data))
        trainer(tmp_path, 5).fit(tasks[-1], data)
    for one, other in zip(tasks[0].state_dict().values(), tasks[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_and_compiled_backbones(tmp_path):
    data = rollouts()
    task = agent(data, compile=True)
    task.backbone.compile = lambda: None  # the compiler itself takes a minute; Task's tests run it
    fit = trainer(tmp_path, 3, precision="bf16-mixed")
    fit.fit(task, data)
    assert fit.callback_metrics["train/kl"] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 8}, r"num_envs must be a multiple of minibatches, .* got num_envs 8 and minibatches 3"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
    ],
)
def test_sizes_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        rollouts(**options)


def test_an_unknown_environment():
    with pytest.raises(ValueError, match=r"cannot make the environment 'minrnn/XMaze-v0'"):
        _ = RolloutDataModule("minrnn/XMaze-v0").input_size


def test_unknown_arguments_of_an_environment():
    with pytest.raises(ValueError, match=r"'minrnn/TMaze-v0' with the arguments width: .*unexpected keyword"):
        _ = RolloutDataModule("minrnn/TMaze-v0", {"width": 3}).input_size


def test_actions_of_another_type(tmp_path):
    data = rollouts("several")
    task = PPOTask(data.input_size, data.output_size, dim=8, depth=1)
    with pytest.raises(ValueError, match=r"the actions of Signal-v0 are \[3, 2\]: give --model.actions \[3,2\]"):
        trainer(tmp_path).fit(task, data)


def test_another_task_is_refused():
    data = rollouts()
    data.setup("fit")
    with pytest.raises(ValueError, match="needs a Trainer with a PPOTask"):
        data.next_minibatch()
