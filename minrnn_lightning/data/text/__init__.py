"""Text as windows of tokens for next-token prediction."""
