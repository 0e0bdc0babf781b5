"""Kernels for quantized models: knows torch and triton, not moopt. Empty until the first fused operation lands."""
