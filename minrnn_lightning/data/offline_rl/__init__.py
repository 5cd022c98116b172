"""Offline reinforcement learning: recorded episodes from D4RL, Minari and custom files."""
