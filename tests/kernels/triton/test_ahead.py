"""Every kernel compiles for sm_90, without a GPU, and keeps to its registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moopt_kernels

KERNELS = {
    "attend_split",
    "join_splits",
    "multiply",
    "multiply_vector",
    "quantize_group",
    "slice_codes",
    "write_weights",
}


def test_every_kernel_compiles_for_sm_90_and_does_not_spill(request: pytest.FixtureRequest) -> None:
    assert request.config.cache is not None
    place = {"TRITON_CACHE_DIR": str(request.config.cache.mkdir("triton")), "TRITON_INTERPRET": "0"}
    place["PYTHONPATH"] = str(Path(moopt_kernels.__file__).parents[1])
    script = Path(__file__).with_name("ahead.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=os.environ | place)
    assert run.returncode == 0, run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    spilling = [kernel for kernel in kernels if kernel["stack"] or kernel["local"]]
    assert not spilling
    assert max(kernel["shared"] for kernel in kernels) <= 227 * 1024, "bytes of shared memory a program has on sm_90"
