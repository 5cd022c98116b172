"""Checkpoints of PufferLib's default policy, against its equations in float64."""

import pytest
import torch

from minrnn_lightning.errors import InputError
from minrnn_lightning.integrations.pufferlib import PufferPolicy, load_policy

OBSERVATION, DIM, ACTIONS, LAYERS = 5, 8, 3, 2


def weights(continuous):
    """A state dict with the names and shapes of PufferLib 4."""
    torch.manual_seed(0)
    decoder = "decoder.decoder_mean" if continuous else "decoder.decoder"
    found = {"encoder.encoder.weight": torch.randn(DIM, OBSERVATION), "encoder.encoder.bias": torch.randn(DIM)}
    found |= {f"{decoder}.weight": torch.randn(ACTIONS, DIM), f"{decoder}.bias": torch.randn(ACTIONS)}
    found |= {"decoder.value_function.weight": torch.randn(1, DIM), "decoder.value_function.bias": torch.randn(1)}
    found |= {f"network.layers.{i}.weight": torch.randn(3 * DIM, DIM) for i in range(LAYERS)}
    return found | ({"decoder.decoder_logstd": torch.randn(1, ACTIONS)} if continuous else {})


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_acts_as_its_equations(tmp_path, continuous, prefix):
    w = weights(continuous)
    torch.save({prefix + name: value for name, value in w.items()}, tmp_path / "policy.bin")
    policy = load_policy(tmp_path / "policy.bin").double()
    w = {name: value.double() for name, value in w.items()}
    decoder = "decoder.decoder_mean" if continuous else "decoder.decoder"
    observations = torch.randn(7, OBSERVATION).double()
    states, outputs, values = [torch.zeros(DIM).double() for _ in range(LAYERS)], [], []
    for observation in observations:
        x = w["encoder.encoder.weight"] @ observation + w["encoder.encoder.bias"]
        for i in range(LAYERS):
            candidate, gate, share = (w[f"network.layers.{i}.weight"] @ x).chunk(3)
            candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
            states[i] = torch.lerp(states[i], candidate, gate.sigmoid())
            x = share.sigmoid() * states[i] + (1 - share.sigmoid()) * x
        outputs.append(w[f"{decoder}.weight"] @ x + w[f"{decoder}.bias"])
        values.append(w["decoder.value_function.weight"][0] @ x + w["decoder.value_function.bias"][0])
    found = policy(observations.unsqueeze(0))
    torch.testing.assert_close(found[0][0], torch.stack(outputs))
    torch.testing.assert_close(found[1][0], torch.stack(values))
    state = policy.initial_state(1)
    for t in range(7):
        step, value, state = policy.step(observations[t : t + 1], state)
        torch.testing.assert_close(step[0], outputs[t])
        torch.testing.assert_close(value[0], values[t])
    if continuous:
        torch.testing.assert_close(policy.log_std, w["decoder.decoder_logstd"][0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64])
def test_observations_of_any_type(dtype):
    policy = PufferPolicy(weights(False))
    observations = torch.randint(256, (2, 4, OBSERVATION)).to(dtype)
    torch.testing.assert_close(policy(observations)[0], policy(observations.float())[0])
    state = policy.initial_state(2)
    step = policy.step(observations[:, 0], state)[0]
    torch.testing.assert_close(step, policy.step(observations[:, 0].float(), state)[0])


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_policy(tmp_path / "nothing.bin")
    (tmp_path / "raw.bin").write_bytes(torch.randn(100).numpy().tobytes())
    torch.save({**weights(False), "network.cell.weight": torch.randn(2, 2)}, tmp_path / "lstm.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    for name in ("raw", "lstm", "list"):
        with pytest.raises(InputError, match="is not a checkpoint of the default policy of PufferLib's PyTorch"):
            load_policy(tmp_path / f"{name}.bin")
