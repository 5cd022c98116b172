"""Environments that need memory, registered with Gymnasium as ``minrnn/…``; importing this package registers them."""

from minrnn_lightning.rl.memory_envs.registration import register_environments

register_environments()
