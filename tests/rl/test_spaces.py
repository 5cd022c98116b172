"""Spaces of environments: what is flattened, what is refused, and actions as environments take them."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from minrnn_lightning.rl.spaces import make_flat, policy_spaces, to_action_space

VECTOR, TWO = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)


class Still(gymnasium.Env):
    """An environment of any spaces in which nothing happens."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


gymnasium.register("Still-v0", Still, disable_env_checker=True)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (VECTOR, 3),
        (spaces.Box(0, 255, (4, 5, 3), np.uint8), 60),
        (spaces.Discrete(7), 7),
        (spaces.MultiBinary(6), 6),
        (spaces.Dict({"a": VECTOR, "b": spaces.Tuple([TWO, spaces.MultiDiscrete([3, 4])])}), 3 + 2 + 7),
    ],
    ids=str,
)
def test_observations_are_flattened(space, size):
    env = make_flat("Still-v0", observation_space=space, action_space=TWO)
    assert policy_spaces(env, "Still-v0").observation_size == size
    assert env.reset(seed=0)[0].shape == (size,)


@pytest.mark.parametrize(
    ("space", "actions", "size"),
    [
        (spaces.Discrete(5, start=3), "discrete", 5),
        (spaces.MultiDiscrete([3, 2]), [3, 2], 5),
        (spaces.MultiDiscrete([3], start=[2]), [3], 3),
        (spaces.Box(np.float32([[-1, 0]]), np.float32([[1, 3]])), "continuous", 2),
    ],
    ids=str,
)
def test_actions(space, actions, size):
    found = policy_spaces(Still(VECTOR, space), "Still-v0")
    assert (found.actions, found.output_size) == (actions, size)
    if actions == "continuous":
        assert (found.low.tolist(), found.high.tolist()) == ([-1, 0], [1, 3])
        taken = to_action_space(np.float32([[-5, 5], [0.5, 0.5]]), space)
        assert taken.tolist() == [[[-1, 3]], [[0.5, 0.5]]]
    elif actions == "discrete":
        assert to_action_space(np.array([0, 4]), space).tolist() == [3, 7]
    elif size == 3:
        assert to_action_space(np.array([0, 2]), space).tolist() == [[2], [4]]
    else:
        assert to_action_space(np.array([[0, 1]]), space).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("observations", "actions", "what"),
    [
        (spaces.Sequence(VECTOR), TWO, "observations Sequence"),
        (spaces.Graph(VECTOR, None), TWO, "observations Graph"),
        (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), "actions Box"),
        (VECTOR, spaces.MultiDiscrete([[2, 3], [4, 5]]), "actions MultiDiscrete"),
        (VECTOR, spaces.Tuple([TWO, TWO]), "actions Tuple"),
    ],
    ids=str,
)
def test_other_spaces_are_refused(observations, actions, what):
    with pytest.raises(ValueError, match=f"^Still-v0 has the {what}.* a policy needs observations that can be flatt"):
        policy_spaces(make_flat("Still-v0", observation_space=observations, action_space=actions), "Still-v0")
