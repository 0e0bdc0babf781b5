"""Linear layers on packed codes."""

from moopt_kernels.linear.ops import quantized_linear, sliced_linear

__all__ = ["quantized_linear", "sliced_linear"]
