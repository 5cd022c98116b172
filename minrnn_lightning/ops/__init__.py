"""The recurrences of minimal RNNs as PyTorch operators."""

from minrnn_lightning.ops.eager import state_dtype
from minrnn_lightning.ops.kernel_choice import use_kernel
from minrnn_lightning.ops.scan import Activation, gated_scan, linear_scan, positive
from minrnn_lightning.ops.sharded import sharded_gated_scan, sharded_scan

__all__ = [
    "Activation",
    "gated_scan",
    "linear_scan",
    "positive",
    "sharded_gated_scan",
    "sharded_scan",
    "state_dtype",
    "use_kernel",
]
