"""Low-bit storage and kernels. Knows torch, not moopt."""

from moopt_kernels.packing import pack, packed_columns, unpack

__all__ = ["pack", "packed_columns", "unpack"]
