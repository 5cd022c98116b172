"""The recurrences of minimal RNNs as PyTorch operators."""

from minrnn_lightning.ops.scan import Activation, gated_scan, linear_scan, positive, use_kernel

__all__ = ["Activation", "gated_scan", "linear_scan", "positive", "use_kernel"]
