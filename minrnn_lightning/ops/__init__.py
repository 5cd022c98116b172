"""The recurrences of minimal RNNs as PyTorch operators."""

from minrnn_lightning.ops.eager import state_dtype
from minrnn_lightning.ops.kernel_choice import use_kernel
from minrnn_lightning.ops.scan import Activation, gated_scan, linear_scan, positive

__all__ = ["Activation", "gated_scan", "linear_scan", "positive", "state_dtype", "use_kernel"]
