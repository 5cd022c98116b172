"""Offline reinforcement learning: recorded episodes of D4RL, Minari and one's own."""
