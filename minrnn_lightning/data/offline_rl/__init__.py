"""Offline reinforcement learning: recorded episodes of D4RL, Minari and files of one's own."""
