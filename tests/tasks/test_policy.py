"""PolicyTask: tokens made one by one by hand, parallel against stepwise, padding, resets, sizes."""

import pytest
import torch
from policies import BATCH, LAYOUTS, SMALL, Batch, batch, policy, stepwise
from torch.nn import functional as F

MIXERS = ["mingru", "minlstm", "attention", ["mingru", "attention"]]


def by_hand(task, rows, layout, discrete, returns):
    """The outputs from tokens made one by one, with one parallel pass of the backbone over each beginning."""
    encoder, outputs, tokens, before = task.encoder, [], [], 0
    for t in range(rows.timesteps.shape[1]):
        time = encoder.embed_timestep.weight[min(t, SMALL["max_timestep"] - 1)]
        scaled = (rows.returns_to_go[:, t] / task.return_scale).unsqueeze(1)
        wanted = F.linear(scaled, encoder.embed_return.weight, encoder.embed_return.bias) if returns else 0
        observation = (rows.observations[:, t] - task.observation_mean) / task.observation_std
        observed = F.linear(observation, encoder.embed_observation.weight, encoder.embed_observation.bias)
        action = rows.actions[:, t]
        if discrete:
            embedded = encoder.embed_action.weight[action]
        else:
            embedded = F.linear(action, encoder.embed_action.weight, encoder.embed_action.bias)
        if layout == "compact":
            tokens.append(encoder.norm(wanted + observed + before + time))
        else:
            tokens += [encoder.norm(wanted + time)] if returns else []
            tokens.append(encoder.norm(observed + time))
        output = task.head(task.backbone(torch.stack(tokens, 1))[0][:, -1])
        outputs.append(output)
        if layout == "decision_transformer":
            tokens.append(encoder.norm(embedded + time))
        before = embedded
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_definition(layout, returns, discrete):
    task = policy(layout=layout, condition_on_return=returns, discrete=discrete)
    rows = batch(discrete, steps=14)  # beyond max_timestep
    with torch.no_grad():
        expected = by_hand(task, rows, layout, discrete, returns)
        given = rows.observations, rows.actions, rows.returns_to_go, rows.timesteps
        torch.testing.assert_close(task(*given), expected)
        torch.testing.assert_close(task(*given, rows.reset), expected)
        tokens = task.encoder(*(each.float() if i != 1 else each for i, each in enumerate(given[:3])), rows.timesteps)
        assert tokens.shape[2] == task.tokens_per_step == (1 if layout == "compact" else 2 + returns)
    if not discrete:
        assert expected.abs().max() <= 1


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_parallel_equals_stepwise(mixer, layout, discrete):
    task, rows = policy(mixer=mixer, layout=layout, discrete=discrete), batch(discrete)
    with torch.no_grad():
        parallel = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps, rows.reset)
        torch.testing.assert_close(stepwise(task, rows), parallel, atol=1e-5, rtol=0)
        last = task.act_window(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    expected = parallel[:, -1].argmax(-1) if discrete else parallel[:, -1]
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_that_starts_again_is_as_if_new(layout, mixer):
    task, rows = policy(mixer=mixer, layout=layout), batch(steps=7)
    start = 3
    again = torch.tensor([False, True, False, True])
    rows.reset[again, start] = True
    rows.timesteps[again, start:] -= start
    alone = Batch(*(each[again, start:] for each in rows))
    with torch.no_grad():
        parallel = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps, rows.reset)
        fresh = task(alone.observations, alone.actions, alone.returns_to_go, alone.timesteps)
        torch.testing.assert_close(parallel[again, start:], fresh, atol=1e-5, rtol=0)
        state, before = task.initial_state(BATCH), None
        for t in range(7):
            given = rows.observations[:, t], before, rows.returns_to_go[:, t], rows.timesteps[:, t], state
            action, state = task.step(*given, rows.reset[:, t] if t in (0, start) else None)
            torch.testing.assert_close(action, parallel[:, t], atol=1e-5, rtol=0)
            before = rows.actions[:, t]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("discrete", [False, True])
def test_padding_changes_nothing(layout, discrete):
    task, lengths = policy(layout=layout, discrete=discrete), [9, 4, 1, 6]
    rows = batch(discrete, lengths=lengths)
    loss = task.batch_loss(rows)
    for each in (rows.observations, rows.returns_to_go):
        each[~rows.mask] = 1e4
    rows.timesteps[~rows.mask] = 0
    rows.actions[~rows.mask] = 0
    assert torch.equal(task.batch_loss(rows), loss)
    total, count = 0.0, 0
    for row, length in enumerate(lengths):
        one = [each[row : row + 1, :length] for each in rows[:4]]
        outputs = task(*one)[0]
        choices = one[1][0]
        errors = -outputs.log_softmax(-1)[torch.arange(length), choices] if discrete else (outputs - choices) ** 2
        total, count = total + errors.sum(), count + errors.numel()
    torch.testing.assert_close(loss, total / count)


def test_without_the_return_it_changes_nothing():
    task, rows = policy(condition_on_return=False), batch()
    one = task(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    assert torch.equal(task(rows.observations, rows.actions, rows.returns_to_go + 500, rows.timesteps), one)
    conditioned = policy()
    one = conditioned(rows.observations, rows.actions, rows.returns_to_go, rows.timesteps)
    assert (
        conditioned(rows.observations, rows.actions, rows.returns_to_go + 500, rows.timesteps) - one
    ).abs().max() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixer", ["mingru", "attention", "mamba", "gru"])
def test_match_parameters_counts_what_there_is(mixer, layout):
    task = policy(mixer=mixer, layout=layout, match_parameters="60k", max_timestep=100)
    assert abs(sum(p.numel() for p in task.parameters()) - 60_000) < 3_000
