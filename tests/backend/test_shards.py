"""Tensors as they are mapped from safetensors."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moopt.backend.shards import Shards, of_model

TENSORS = {
    "single": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 3, 4).bfloat16(),
    "double": torch.randn(3).double(),
    "eight": torch.randn(6).to(torch.float8_e4m3fn),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "whole": torch.arange(4) - 2,
    "yes": torch.tensor([True, False, True]),
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", list(TENSORS))
def test_every_type_and_shape_is_what_the_library_reads(file: Path, name: str):
    expected, found = load_file(file)[name], Shards([file])[name]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def test_data_that_begin_at_an_odd_byte_are_read(file: Path):
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :])
    shards = Shards([file])
    assert all(torch.equal(shards[name], TENSORS[name]) for name in ("single", "half", "brain", "whole", "one"))


def test_writing_to_a_tensor_leaves_the_file_alone(file: Path):
    Shards([file])["single"].zero_()
    assert torch.equal(Shards([file])["single"], TENSORS["single"])


def test_tensors_hold_no_file_open_and_outlive_it(file: Path):
    shards, before = of_model(file.parent), len(os.listdir("/proc/self/fd"))
    held = [shards["single"] for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    file.unlink()
    assert torch.equal(held[-1], TENSORS["single"])
