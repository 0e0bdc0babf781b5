"""Where Triton's kernels run: on a GPU if there is one, else in the interpreter (see tests/conftest.py)."""

from __future__ import annotations

import os
import sys

import pytest
import torch

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU, and Triton's interpreter was not asked for: set TRITON_INTERPRET=1")
    return "cpu"
