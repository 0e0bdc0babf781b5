"""The packed file: as many bytes as was said, the same weights back, nothing half-written, damage told by name."""

from __future__ import annotations

import json
import struct
import zlib
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
from moopt_kernels.quantize import reference
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
    path.write_bytes(whole.replace(b"moopt-packed-3", b"moopt-packed-2"))
    with pytest.raises(BackendError, match="its format is moopt-packed-2"):
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


def forge(path: Path, change: Callable[[dict[str, Any]], None], behind: bytes = b"") -> None:
    """Change a file's header and make its checksum right again, as somebody would who means harm."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    change(entries)
    if isinstance(entries["__metadata__"], dict):
        entries["__metadata__"]["check"] = "0" * 8
    text = json.dumps(entries, separators=(",", ":"))
    text = text.replace("0" * 8, f"{zlib.crc32(text.encode()):08x}", 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[start:] + behind)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of 8-bit matrices."""
    source = Source()
    return source.write(tmp_path_factory.mktemp("parent") / "model.safetensors", source.uniform(8)).read_bytes()


UP = "model.layers.1.mlp.up_proj"


def said(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entries: entries["__metadata__"].update({key: value})


def unsaid(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda entries: entries["__metadata__"].pop(key)


def placed(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entries: entries[name].update({key: value})


def width(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(entries: dict[str, Any]) -> None:
        metadata = entries["__metadata__"]
        metadata["bits"] = json.dumps({**json.loads(metadata["bits"]), UP: value})

    return change


def sliced(name: str, matrix: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(entries: dict[str, Any]) -> None:
        metadata = entries["__metadata__"]
        metadata["slices"] = json.dumps({name: {**json.loads(metadata["bits"]), matrix: value}})

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    """Takes a tensor out, and its checksum."""

    def change(entries: dict[str, Any]) -> None:
        place = [n for n in entries if n != "__metadata__"].index(name)
        checks = entries["__metadata__"]["checks"]
        entries["__metadata__"]["checks"] = checks[: 8 * place] + checks[8 * place + 8 :]
        del entries[name]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (unsaid("bits"), "bits is missing"),
        (said("format", None), "its format is None"),
        (said("group_size", "x"), "group_size is 'x'"),
        (said("group_size", 32), "group_size is missing or is no text"),
        (said("group_size", "0"), "group_size is '0'"),
        (said("group_size", "9" * 5000), "group_size is '999"),
        (said("group_size", "16"), r"is U8 .* expected|codes is U8"),
        (said("symmetric", "perhaps"), "symmetric is 'perhaps'"),
        (said("symmetric", "true"), "zeros is there, but not needed"),
        (said("bits", "[]"), "bits is no JSON object"),
        (said("bits", "{"), "bits is no JSON"),
        (said("bits", "[" * 100_000), "bits is no JSON"),
        (said("config", "{'a'}"), "config is no JSON"),
        (said("config", "[1]"), "config is no JSON object"),
        (said("inputs", json.dumps({UP: 1})), "has 1 inputs and 2 groups of 32"),
        (said("inputs", json.dumps({"nowhere": 1})), "inputs names what is no quantized matrix"),
        (said("checks", "00"), "not as many checksums"),
        (width(0), f"bits of '{UP}' is 0"),
        (width(9), f"bits of '{UP}' is 9"),
        (width("4"), f"bits of '{UP}' is '4'"),
        (width(None), f"bits of '{UP}' is None"),
        (width(4), rf"{UP}.codes is U8 \[128, 64\], expected U8 \[128, 32\] at 4 bits"),
        (placed(f"{UP}.codes", "dtype", "F64"), "is of type 'F64'"),
        (placed(f"{UP}.codes", "dtype", ["U8"]), "is of type"),
        (placed(f"{UP}.codes", "shape", [128, 65]), f"{UP}.codes is said to be at"),
        (placed(f"{UP}.codes", "shape", [-128, -64]), "has the shape"),
        (placed(f"{UP}.codes", "shape", [1 << 62, 0]), "has the shape"),
        (placed(f"{UP}.codes", "shape", None), "has the shape"),
        (placed(f"{UP}.codes", "shape", [64, 128]), f"{UP}.codes is U8"),
        (placed(f"{UP}.zeros", "shape", [256]), f"{UP}.zeros is U8"),
        (placed(f"{UP}.scales", "shape", [256]), f"{UP}.scales has the shape"),
        (placed(f"{UP}.codes", "data_offsets", [0, 8192]), f"{UP}.codes is said to be at"),
        (placed(f"{UP}.codes", "data_offsets", "here"), f"{UP}.codes is said to be at"),
        (lambda entries: entries.update({f"{UP}.codes": 7}), f"{UP}.codes has no place"),
        (lambda entries: entries.update({"__metadata__": [1]}), "its format is none"),
        (without(f"{UP}.zeros"), "is said to be at"),
        (sliced("", UP, 4), "a slice map has no name"),
        (sliced("x", UP, 9), f"the slice map 'x' of '{UP}' is 9"),
        (sliced("x", "nowhere", 4), "the slice map 'x' needs a width for each of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "header",
)
def test_a_header_that_does_not_fit_is_told_and_nothing_else_is_raised(
    tmp_path: Path, parent: bytes, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(parent)
    forge(path, change)
    with pytest.raises(BackendError, match=f"Cannot read .*{told}"):
        packed.read(path)


def test_zero_points_that_are_gone_are_missed(tmp_path: Path) -> None:
    source = Source()
    path = source.write(tmp_path / "model.safetensors", source.uniform(8))
    last = max(all_places(path).items(), key=lambda place: place[1])[0]
    assert last.endswith(".zeros")
    size = path.stat().st_size - all_places(path)[last]
    forge(path, without(last))
    path.write_bytes(path.read_bytes()[:-size])
    with pytest.raises(BackendError, match=f"{last} is missing"):
        packed.read(path)


def all_places(path: Path) -> dict[str, int]:
    """Where each tensor begins in the file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    return {name: start + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}


def test_bytes_behind_the_tensors_are_refused(tmp_path: Path) -> None:
    source = Source()
    path = source.write(tmp_path / "model.safetensors", source.uniform(8))
    forge(path, lambda entries: None)
    assert set(packed.read(path).matrices) == set(source.names)
    forge(path, lambda entries: None, b"more")
    with pytest.raises(BackendError, match=r"its tensors take .* bytes, and there are"):
        packed.read(path)


def test_groups_that_do_not_divide_the_inputs_come_back(tmp_path: Path) -> None:
    source = Source()
    layout = Layout(source.layout.inventory, 48, False)

    def quantized(name: str, bits: int) -> Quantized:
        matrix = reference.quantize_weight(source.model.get_submodule(name).weight.data, bits, 48)
        return Quantized(*matrix, bits)

    path = tmp_path / "model.safetensors"
    packed.write(path, layout, source.uniform(5), quantized, dict(source.model.named_parameters()))
    assert path.stat().st_size == layout.total_bytes(source.uniform(5))
    for name, matrix in packed.read(path).matrices.items():
        assert matrix.shape == tuple(source.model.get_submodule(name).weight.shape)
        assert torch.equal(unpack(matrix.codes, 5, matrix.shape[1]), quantized(name, 5).codes)
