"""The packed file: as many bytes as was said, the same weights back, nothing half-written, damage told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from moopt.backend import models, packed, quantizers, weights
from moopt.backend.packed import Layout
from moopt.backend.quantizers import Quantized
from moopt.errors import BackendError
from moopt_kernels import unpack
from tests.backend.conftest import make_model


class Source:
    """A random model, its matrices at any width, and how it is stored."""

    def __init__(self, family: str = "llama-tied", plain: frozenset[str] = frozenset()) -> None:
        self.model = make_model(family)
        self.model.config.architectures = [type(self.model).__name__]
        inventory = weights.inventory(self.model)
        self.layout = Layout(inventory, 32, False, plain, models.portable(self.model.config))
        self.names = [w.name for w in inventory.weights if w.name not in plain]

    def quantized(self, name: str, bits: int) -> Quantized:
        return quantizers.rtn(self.model.get_submodule(name).weight.data, bits, 32)

    def uniform(self, bits: int) -> dict[str, int]:
        return dict.fromkeys(self.names, bits)

    def write(self, path: Path, widths: dict[str, int], slices: Any = None) -> Path:
        packed.write(path, self.layout, widths, self.quantized, dict(self.model.named_parameters()), slices)
        return path


def all_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "opt"])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_file_has_the_bytes_that_were_promised_and_gives_back_every_bit(
    tmp_path: Path, family: str, bits: int
) -> None:
    down = "model.layers.0.mlp.down_proj"
    source = Source(family, frozenset({down}) if family == "llama-tied" else frozenset())
    path = source.write(tmp_path / "model.safetensors", source.uniform(bits))
    assert path.stat().st_size == source.layout.total_bytes(source.uniform(bits))
    file = packed.read(path)
    assert list(file.matrices) == sorted(source.names)
    for name, matrix in file.matrices.items():
        quantized = source.quantized(name, bits)
        assert torch.equal(unpack(matrix.codes, bits, matrix.shape[1]), quantized.codes)
        assert torch.equal(matrix.scales, quantized.scales)
        assert matrix.zeros is not None
        assert quantized.zeros is not None
        assert torch.equal(matrix.zeros, quantized.zeros)
    parameters = dict(source.model.named_parameters())
    assert set(file.rest) == set(source.layout.unquantized())
    assert all(torch.equal(tensor, parameters[name].bfloat16()) for name, tensor in file.rest.items())
    assert file.config["hidden_size"] == 64
    assert len(all_tensors(path)) == len(file.rest) + 3 * len(file.matrices)  # any reader of safetensors can open it


def test_slice_maps_add_their_names_and_widths_and_nothing_else(tmp_path: Path) -> None:
    source = Source()
    slices = {f"front-{bits}": source.uniform(bits) for bits in (2, 3, 4, 5, 6)}
    alone = source.write(tmp_path / "parent.safetensors", source.uniform(8))
    path = source.write(tmp_path / "front.safetensors", source.uniform(8), slices)
    assert path.stat().st_size == source.layout.total_bytes(source.uniform(8), slices)
    assert path.stat().st_size - alone.stat().st_size < 5 * 60 * len(source.names)
    assert packed.read(path).slices == slices
    assert all(torch.equal(a, b) for a, b in zip(all_tensors(path).values(), all_tensors(alone).values(), strict=True))


@pytest.mark.parametrize("wrong", [{"slices": {"x": {"model.embed_tokens": 4}}}, {"bits": 4}])
def test_a_slice_map_that_does_not_fit_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    source = Source()
    slices = wrong.get("slices", {"x": source.uniform(4)})
    with pytest.raises(BackendError, match="slice map 'x' does not fit"):
        source.write(tmp_path / "model.safetensors", source.uniform(wrong.get("bits", 8)), slices)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = Source()
    with pytest.raises(KeyError):
        source.write(tmp_path / "model.safetensors", {source.names[0]: 4})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    source = Source()
    path = source.write(tmp_path / "model.safetensors", source.uniform(4))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for name in ("model.layers.1.mlp.up_proj.codes", "model.norm.weight"):
        begin = json.loads(whole[8:start])[name]["data_offsets"][0]
        damaged = bytearray(whole)
        damaged[start + begin + 5] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BackendError, match=f"is damaged: {name} is not"):
            packed.read(path)
    path.write_bytes(whole.replace(b"moopt-packed-2", b"moopt-packed-1"))
    with pytest.raises(BackendError, match="its format is moopt-packed-1"):
        packed.read(path)
    path.write_bytes(whole.replace(b'"hidden_size', b'"hidden_sise').replace(b'hidden_size\\"', b'hidden_sise\\"'))
    with pytest.raises(BackendError, match="its header is not what was written"):
        packed.read(path)
    path.write_bytes(whole[:-40])
    with pytest.raises(BackendError, match="is damaged"):
        packed.read(path)


def test_another_file_is_refused(tmp_path: Path, save: Callable[[str], Path]) -> None:
    with pytest.raises(BackendError, match="is not a packed file"):
        packed.read(save("llama-tied") / "model.safetensors")
    for content in (b"torn", b"", b"a longer text, but still no file of tensors"):
        (tmp_path / "torn.safetensors").write_bytes(content)
        with pytest.raises(BackendError, match="Cannot read"):
            packed.read(tmp_path / "torn.safetensors")
    with pytest.raises(BackendError, match="Cannot read"):
        packed.read(tmp_path / "missing.safetensors")
