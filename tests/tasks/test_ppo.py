"""``PPOTask``: the loss against its formula, weights of an offline policy, arguments and checkpoints of other sizes."""

import pytest
import torch
from online import agent, rollouts, trainer
from policies import policy
from torch.distributions import Categorical

from minrnn_lightning.batches import RolloutBatch
from minrnn_lightning.tasks import PPOTask


def test_loss_equals_its_formula():
    task = agent(rollouts(), clip=0.1, value_clip=0.05, value_coefficient=0.7, entropy_coefficient=0.03)
    draw = torch.Generator().manual_seed(0)
    shape = 3, 5
    numbers = {name: torch.randn(shape, generator=draw) for name in ("log_probs", "values", "advantages")}
    observations, actions = torch.randn(*shape, 4, generator=draw), torch.randint(3, shape, generator=draw)
    reset = torch.rand(shape, generator=draw) < 0.2
    batch = RolloutBatch(observations, actions, actions, **numbers, reset=reset, state=task.initial_state(3))
    logits, values, _ = task(observations, None, reset)
    distribution = Categorical(logits=logits)
    ratio = (distribution.log_prob(actions) - batch.log_probs).exp()
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std(correction=0)
    surrogate = torch.minimum(ratio * advantages, ratio.clip(0.9, 1.1) * advantages).mean()
    returns = batch.advantages + batch.values
    clipped = batch.values + (values - batch.values).clip(-0.05, 0.05)
    error = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean() / 2
    expected = -surrogate + 0.7 * error - 0.03 * distribution.entropy().mean()
    torch.testing.assert_close(task.batch_loss(batch), expected)
    assert task.losses(batch)["clip_fraction"].item() == pytest.approx(((ratio - 1).abs() > 0.1).float().mean().item())


@pytest.mark.parametrize("discrete", [True, False])
def test_an_offline_policy_acts_as_before(tmp_path, discrete):
    """One of the compact layout whose inputs are the observation and the previous action."""
    options = {"layout": "compact", "condition_on_return": False, "max_timestep": 0}
    before = policy(discrete=discrete, input_size=4, output_size=3 if discrete else 2, **options)
    if not discrete:
        before.bound_actions([-2.0, 0.0], [2.0, 10.0])
    torch.save({"state_dict": before.state_dict()}, tmp_path / "offline.ckpt")

    class Compare(PPOTask):
        """Compares the first steps of both policies before the training starts."""

        def on_train_start(self):
            state, other = self.initial_state(5), before.initial_state(5)
            previous, action = None, None
            for t in range(4):
                observation = torch.randn(5, 4, generator=torch.Generator().manual_seed(t))
                with torch.no_grad():
                    outputs, _, state = self.step(observation, state, None, previous)
                    rest = torch.zeros(5), torch.full((5,), t)
                    action, other = before.step(observation, action, *rest, other)
                torch.testing.assert_close(self.decide(outputs), action)
                previous = self.distribution.mode(outputs)
            self.compared = True

    data = rollouts("discrete" if discrete else "continuous")
    sizes = {name: before.hparams[name] for name in ("dim", "depth", "kernel_size", "mlp_ratio", "expansion")}
    task = Compare(
        4, before.output_size, actions=data.actions, previous_action=True, **sizes, init_from=tmp_path / "offline.ckpt"
    )
    trainer(tmp_path, 7).fit(task, data)  # two rollouts
    assert task.compared
    assert task.observation_count == 1_000_000 + 6 * 24  # the statistics of the data count, and change slowly
    torch.testing.assert_close(task.observation_mean, before.observation_mean, rtol=0, atol=0.01)


def test_a_checkpoint_of_another_size(minrnn, tmp_path):
    words = ["--data=RolloutDataModule", "--data.env_id=minrnn/TMaze-v0", "--data.num_envs=4", "--data.length=8"]
    words += ["--data.eval_episodes=1", "--model=PPOTask", "--model.depth=1", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    assert minrnn("fit", *words, "--model.dim=8")[0] == 0
    checkpoint = tmp_path / "version_0/checkpoints/last.ckpt"
    code, _, errors = minrnn("fit", *words, "--model.dim=16", f"--ckpt_path={checkpoint}")
    assert code == 1
    assert "does not fit this PPOTask: " in errors
    assert errors.count("\n") == 1
    code, out, errors = minrnn("rollout", f"--checkpoint={checkpoint}", "--episodes=2")
    assert code == 0, errors
    assert "minrnn/TMaze-v0, gymnasium" in out
    code, out, errors = minrnn("rollout", f"--checkpoint={checkpoint}", "--episodes=2", '--env_args={"length": 3}')
    assert code == 0, errors
    assert " 40 " in out or " 4 " in out  # the limit of a maze of this length, or its shortest path
    for more, message in (
        (["--env=minrnn/RepeatPreviousEasy-v0"], "4 numbers in an observation and 4 of discrete actions, the policy 3"),
        (["--mode=window"], "mode must be carry for a PPOTask"),
        (["--env=minrnn/PendulumPosition-v0"], "1 of continuous actions"),
    ):
        code, _, errors = minrnn("rollout", f"--checkpoint={checkpoint}", *more)
        assert code == 1
        assert message in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.env_id=minrnn/XMaze-v0", "Gymnasium cannot make the environment 'minrnn/XMaze-v0'"),
        ("--data.env_id=Blackjack-v1", None),  # a tuple of discrete observations, which is flattened
        ("--data.minibatches=3", "num_envs must be a multiple of minibatches"),
        ("--model.actions=[2,2]", "the actions of minrnn/TMaze-v0 are discrete: give --model.actions discrete"),
        ("--model.actions=[2,3]", "actions must have the sum output_size, 4, got [2, 3]"),
        ("--model.gamma=1.5", "gamma must be at least 0 and at most 1, got 1.5"),
        ("--model.clip=0", "clip must be above 0, got 0"),
        ("--model.dropout=0.1", "dropout must be 0 in a PPOTask"),
    ],
)
def test_options_of_the_command(minrnn, tmp_path, option, message):
    words = ["--config=rl/ppo_memory", "--data.num_envs=4", "--data.length=8", "--data.env_args={}"]
    words += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"]
    code, _, errors = minrnn("fit", *words, option)
    if message is None:
        assert code == 0, errors
    else:
        assert code == 1
        assert message in errors
        assert "Traceback" not in errors
