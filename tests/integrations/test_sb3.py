"""Stable-Baselines3: the probabilities in the rollout and in the training agree, over resets and truncations."""

import numpy as np
import pytest
import torch
from backbones import BACKBONES, arguments, randomize

sb3_contrib = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib")
online = pytest.importorskip("online", reason="needs gymnasium")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

from minrnn_lightning.integrations.sb3 import BackbonePolicy  # noqa: E402

STEPS = 24


class Compare(sb3_contrib.RecurrentPPO):
    """Compares probabilities and values of the whole rollout before the training on it."""

    def train(self):
        samples = list(self.rollout_buffer.get(STEPS * self.n_envs))
        with torch.no_grad():
            for batch in samples:
                inputs = batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
                values, log_prob, _ = self.policy.evaluate_actions(*inputs)
                mask = batch.mask > 1e-8
                torch.testing.assert_close(log_prob[mask], batch.old_log_prob[mask], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(values.flatten()[mask], batch.old_values[mask], rtol=1e-5, atol=1e-5)
        self.starts = [*getattr(self, "starts", []), bool(self.rollout_buffer.hidden_states_pi[0].any())]
        self.resets = int(self.rollout_buffer.episode_starts[1:].sum())
        super().train()


def agent(name, kind="several", **options):
    torch.manual_seed(0)
    envs = make_vec_env("Signal-v0", n_envs=3, env_kwargs={"kind": kind}, seed=0)
    options = {"backbone": arguments(name), "net_arch": [], **options}
    model = Compare(
        BackbonePolicy, envs, n_steps=STEPS, batch_size=STEPS, n_epochs=1, policy_kwargs=options, device="cpu"
    )
    randomize(model.policy)
    return model


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", ["several", "continuous"])
def test_training_repeats_the_rollout(name, kind):
    model = agent(name, kind)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(2 * 3 * STEPS)
    assert model.starts == [False, True]
    assert model.resets > 0
    assert all((value != before[key]).any() for key, value in model.policy.state_dict().items())


def test_actor_and_critic_may_share_a_memory():
    model = agent("mingru", shared_lstm=True, enable_critic_lstm=False)
    assert model.policy.lstm_critic is None
    model.learn(3 * STEPS)


def test_predict_and_a_saved_model(tmp_path):
    """Without a state, an episode starts from the learned one."""
    model = agent("learned start", "continuous")
    model.learn(3 * STEPS)
    model.save(tmp_path / "agent.zip")
    loaded = Compare.load(tmp_path / "agent.zip", device="cpu")
    observations = torch.randn(5, 3, 4).numpy()
    state, other = None, None
    for t, observation in enumerate(observations):
        action, state = model.predict(observation, state, deterministic=True)
        starts = np.full(3, t == 0)
        again, other = loaded.predict(observation, other or state, starts, deterministic=True)
        np.testing.assert_allclose(action, again, rtol=1e-5, atol=1e-6)
    assert BackbonePolicy(**model.policy._get_constructor_parameters()).backbone == arguments("learned start")
