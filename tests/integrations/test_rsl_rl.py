"""rsl-rl: the probabilities in the rollout and in the training agree; exported policies act as the one in memory."""

from unittest.mock import patch

import pytest
import torch
from backbones import BACKBONES, arguments, randomize

pytest.importorskip("rsl_rl", reason="needs rsl-rl-lib")
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

STEPS, ENVS = 24, 4


class Noise(VecEnv):
    """Random observations and rewards; episodes terminate with probability 0.1, and are truncated after 7 steps."""

    num_envs, num_actions, max_episode_length, device = ENVS, 2, 7, "cpu"
    cfg: dict = {}  # noqa: RUF012

    def __init__(self):
        self.episode_length_buf = torch.zeros(ENVS, dtype=torch.long)
        self.draw = torch.Generator().manual_seed(0)

    def get_observations(self):
        return TensorDict({"policy": torch.randn(ENVS, 3, generator=self.draw)}, [ENVS])

    def step(self, actions):
        self.episode_length_buf += 1
        truncated = self.episode_length_buf >= self.max_episode_length
        done = truncated | (torch.rand(ENVS, generator=self.draw) < 0.1)
        self.episode_length_buf[done] = 0
        return self.get_observations(), torch.randn(ENVS, generator=self.draw), done, {"time_outs": truncated}


def runner(name):
    torch.manual_seed(0)
    model = {"class_name": "minrnn_lightning.integrations.rsl_rl:BackboneModel", "backbone": arguments(name)}
    model |= {"hidden_dims": [8], "obs_normalization": False}
    configuration = {
        "num_steps_per_env": STEPS,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 1, "num_mini_batches": 2},
        "actor": {**model, "distribution_cfg": {"class_name": "GaussianDistribution"}},
        "critic": model,
        "multi_gpu": None,
    }
    found = OnPolicyRunner(Noise(), configuration)
    randomize(found.alg.actor)
    randomize(found.alg.critic)
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_training_repeats_the_rollout(name):
    made = runner(name)
    algorithm, update, starts = made.alg, made.alg.update, []

    def compare():
        with torch.no_grad():
            for batch in algorithm.storage.recurrent_mini_batch_generator(2, 1):
                actor, critic = batch.hidden_states
                algorithm.actor(batch.observations, batch.masks, actor, stochastic_output=True)
                log_prob = algorithm.actor.get_output_log_prob(batch.actions)
                torch.testing.assert_close(log_prob, batch.old_actions_log_prob.squeeze(-1), rtol=1e-5, atol=1e-5)
                values = algorithm.critic(batch.observations, batch.masks, critic)
                torch.testing.assert_close(values, batch.values, rtol=1e-5, atol=1e-5)
        starts.append(bool(algorithm.storage.saved_hidden_state_a[0][0].any()))
        assert algorithm.storage.dones[:-1].any()
        return update()

    with patch.object(algorithm, "update", compare):
        made.learn(2)
    assert starts == [False, True]


@pytest.mark.parametrize("name", ["learned start", "gru"])
def test_exported_policies_act_as_the_one_in_memory(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    made = runner(name)
    made.export_policy_to_jit(tmp_path)
    made.export_policy_to_onnx(tmp_path)
    policy = made.get_inference_policy()
    jit = torch.jit.load(tmp_path / "policy.pt")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    for _ in range(2):
        policy.reset()
        jit.reset()
        state = torch.zeros(1, 1, policy.rnn.rnn.state_size).numpy()
        for _ in range(4):
            observation = torch.randn(1, 3)
            with torch.no_grad():
                expected = policy(TensorDict({"policy": observation}, [1]))
                torch.testing.assert_close(jit(observation), expected, rtol=1e-5, atol=1e-6)
            action, state = session.run(None, {"obs": observation.numpy(), "h_in": state})
            torch.testing.assert_close(torch.from_numpy(action), expected, rtol=1e-5, atol=1e-6)
