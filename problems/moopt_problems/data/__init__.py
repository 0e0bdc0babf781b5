"""Measured tables that come with the package; `studies/` has the scripts that made them."""

from pathlib import Path

SMOLLM2 = Path(__file__).parent / "smollm2-135m.parquet"
"""The proxy bench: random bit allocations of smollm2-135m and their KL, made by `studies/proxy_bench.py`."""
