"""Tensors as they are mapped from safetensors."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moopt.backend.shards import Shards, of_model
from moopt.errors import ModelNotFound

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


def test_a_file_that_was_replaced_is_not_read_at_the_places_of_before(file: Path):
    shards = Shards([file])
    save_file({"other": torch.zeros(50), **TENSORS}, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)
    with pytest.raises(ModelNotFound, match=r"model\.safetensors has changed since it was opened"):
        shards["single"]
    file.unlink()
    with pytest.raises(ModelNotFound, match="or is gone"):
        shards["single"]


def test_another_working_folder_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    shards = Shards([Path(file.name)])
    monkeypatch.chdir("/")
    assert torch.equal(shards["single"], TENSORS["single"])


@pytest.mark.parametrize("header", [(2**40).to_bytes(8, "little") + b"{", (50).to_bytes(8, "little") + b"[" * 50])
def test_a_header_that_is_none_is_refused_unread(file: Path, header: bytes):
    file.write_bytes(header)
    with pytest.raises(ModelNotFound, match=r"is no safetensors file.*Copy the model again"):
        of_model(file.parent)


def test_a_header_nested_without_end_is_refused(file: Path):
    file.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(ModelNotFound, match="is no safetensors file"):
        of_model(file.parent)


def sharded(folder: Path, weight_map: object) -> None:
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("weight_map", "said"), [
    ({}, "it names no files"), ({"w": 5}, "it names no files"), ([], "cannot be read|names no files"),
    ({"w": "a.safetensors", "v": "a.safetensors"}, r"a\.safetensors lacks 'v', which the index lists"),
    ({"w": "b.safetensors"}, r"There is no .*b\.safetensors"), ({"w": "x" * 5000}, "There is no "),
])  # fmt: skip
def test_an_index_that_is_wrong_is_refused(tmp_path: Path, weight_map: object, said: str):
    sharded(tmp_path / "model", weight_map)
    with pytest.raises(ModelNotFound, match=said):
        of_model(tmp_path / "model")


def test_a_model_in_one_file_comes_before_an_index_that_was_left(tmp_path: Path):
    sharded(tmp_path / "model", {"w": "a.safetensors"})
    assert float(of_model(tmp_path / "model")["w"][0]) == 1.0
    save_file({"w": torch.zeros(2)}, tmp_path / "model" / "model.safetensors")
    assert float(of_model(tmp_path / "model")["w"][0]) == 0.0
