"""Weights to codes and back: quantize, slice and repack, dequantize."""

from moopt_kernels.quantize.ops import dequantize, quantize_weight, slice_repack
from moopt_kernels.quantize.reference import sliced_codes

__all__ = ["dequantize", "quantize_weight", "slice_repack", "sliced_codes"]
