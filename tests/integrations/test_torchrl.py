"""TorchRL: the probabilities in the collector and in the training agree, over resets, truncations and batches."""

import pytest
import torch
from backbones import BACKBONES, backbone, randomize
from torch import nn

pytest.importorskip("torchrl", reason="needs torchrl")
online = pytest.importorskip("online", reason="needs gymnasium")

from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402
from torchrl.collectors import Collector  # noqa: E402
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, TransformedEnv  # noqa: E402
from torchrl.modules import OneHotCategorical, ProbabilisticActor, set_recurrent_mode  # noqa: E402

from minrnn_lightning.integrations.torchrl import BackboneModule  # noqa: E402

ENVS, LENGTH = 3, 24


@pytest.mark.parametrize("name", BACKBONES)
def test_training_repeats_the_rollout(name):
    torch.manual_seed(0)
    memory = randomize(BackboneModule(4, backbone(name)))
    head = TensorDictModule(nn.Linear(16, 3), ["embed"], ["logits"])
    options = {"in_keys": ["logits"], "distribution_class": OneHotCategorical, "return_log_prob": True}
    policy = TensorDictSequential(memory, ProbabilisticActor(head, **options))
    envs = SerialEnv(ENVS, lambda: GymEnv("Signal-v0", kind="from zero"))
    env = TransformedEnv(envs, Compose(InitTracker(), memory.make_tensordict_primer()))
    collector = Collector(env, policy, frames_per_batch=ENVS * LENGTH, total_frames=2 * ENVS * LENGTH)
    started = []
    for data in collector:
        assert data.shape == (ENVS, LENGTH)
        with set_recurrent_mode(True), torch.no_grad():
            found = head(memory(data.clone()))
            again = OneHotCategorical(logits=found["logits"]).log_prob(data["action"])
            states = found["next", "recurrent_state"]
        torch.testing.assert_close(again, data["action_log_prob"], rtol=0, atol=1e-5)
        following = data["next"][:, -1].select("observation", "recurrent_state", "is_init")
        other = following.clone().set("recurrent_state", states[:, -1])
        torch.testing.assert_close(memory(other)["embed"], memory(following)["embed"], rtol=1e-5, atol=1e-5)
        assert not states[:, :-1].any()
        assert data["is_init"][:, 1:].any()
        assert data["next", "truncated"].any()
        assert data["next", "terminated"].any()
        started.append(bool(data["recurrent_state"][:, 0].any()))
    collector.shutdown()
    assert started == [False, True]  # the second rollout starts from the states after the first one


def test_only_the_first_state_counts_and_is_init_restarts():
    torch.manual_seed(0)
    memory = randomize(BackboneModule(4, backbone("learned start"), default_recurrent_mode=True))
    size = memory.memory.state_size
    is_init = torch.zeros(2, 2, 8, 1, dtype=torch.bool)
    is_init[:, :, 3] = True
    data = {"observation": torch.randn(2, 2, 8, 4), "recurrent_state": torch.rand(2, 2, 8, size), "is_init": is_init}
    y = memory(TensorDict(data, [2, 2, 8]))["embed"]
    other = memory(TensorDict({**data, "recurrent_state": torch.rand(2, 2, 8, size)}, [2, 2, 8]))["embed"]
    assert (other[:, :, :3] != y[:, :, :3]).any(-1).all()
    torch.testing.assert_close(other[:, :, 3:], y[:, :, 3:])
    part = {key: value[0, 1, 3:] for key, value in data.items()}
    torch.testing.assert_close(memory(TensorDict(part, [5]))["embed"], y[0, 1, 3:])
    with set_recurrent_mode(False):
        step = memory(TensorDict({key: value[:, :, 3] for key, value in data.items()}, [2, 2]))
    torch.testing.assert_close(step["embed"], y[:, :, 3])
