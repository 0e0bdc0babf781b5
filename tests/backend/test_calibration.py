"""What layers read: the same sums as a whole forward pass gives, block by block, stored, checked and resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moopt.backend import weights
from moopt.backend.calibration import Calibration
from moopt.backend.candidate import Candidate
from moopt.backend.quantizers import GPTQ, MatGPTQ
from moopt.backend.variant_store import VariantStore
from moopt.errors import QuantizationError
from moopt_kernels import choose_layout
from tests.backend.conftest import make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    choose_layout("cpu")  # compiled kernels come from the usual cache
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    return tmp_path / "calibration"


def linears(model: Any) -> list[str]:
    return [w.name for w in weights.inventory(model).linears()]


def whole_pass(model: Any) -> dict[str, Tensor]:
    """The mean of x x' of every linear layer, from one plain forward pass."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def note(module: Any, inputs: Any) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found[name] = x.T @ x / len(x)

        return note

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in linears(model)]
    with torch.inference_mode():
        model.base_model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gemma", "phi", "opt", "gpt-neox", "granite"])
def test_blocks_one_by_one_read_what_a_whole_pass_reads(folder: Path, family: str) -> None:
    model = make_model(family)
    expected = whole_pass(model)
    calibration = Calibration(model, linears(model), IDS, "model")
    for name in linears(model):
        found = calibration.inputs(name)
        assert found is not None
        assert found.tokens == 120
        assert (found.moment - expected[name]).norm() < 1e-5 * expected[name].norm()
    assert torch.equal(whole_pass(model)[name], expected[name])  # the model is as it was


def test_layers_that_read_the_same_share_one_moment(folder: Path) -> None:
    model = make_model("llama")
    calibration = Calibration(model, linears(model), IDS, "model")
    block = "model.layers.1"
    assert calibration.inputs(f"{block}.self_attn.q_proj") is calibration.inputs(f"{block}.self_attn.v_proj")
    assert calibration.inputs(f"{block}.mlp.gate_proj") is calibration.inputs(f"{block}.mlp.up_proj")
    assert calibration.inputs(f"{block}.mlp.up_proj") is not calibration.inputs(f"{block}.mlp.down_proj")
    assert calibration.inputs("model.embed_tokens") is None


def passes(model: Any, work: Any) -> list[int]:
    """Which blocks ran in a piece of work, in order."""
    ran: list[int] = []
    handles = [
        block.self_attn.register_forward_hook(lambda m, x, y, number=number: ran.append(number))
        for number, block in enumerate(model.model.layers)
    ]
    work()
    for handle in handles:
        handle.remove()
    return ran


def test_a_block_is_summed_once_and_what_is_missing_later(folder: Path) -> None:
    model = make_model("llama")
    names = linears(model)
    assert passes(model, lambda: Calibration(model, names, IDS, "model").inputs(names[0])) == [0]
    again = Calibration(model, names, IDS, "model")
    assert passes(model, lambda: again.inputs(names[0])) == []
    assert passes(model, lambda: again.inputs(names[-1])) == [0, 1]  # as by a process that was stopped after block 0
    assert passes(model, lambda: [Calibration(model, names, IDS, "model").inputs(name) for name in names]) == []
    other = Calibration(model, names, IDS.flip(0), "model")
    assert other.key != again.key
    assert passes(model, lambda: other.inputs(names[0])) == [0]


def test_damaged_moments_are_made_again_and_that_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama")
    names = linears(model)
    kept = Calibration(model, names, IDS, "model").inputs(names[0])
    assert kept is not None
    expected = kept.moment.clone()  # what is kept is mapped from the file
    (file,) = folder.rglob("0.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    found = Calibration(model, names, IDS, "model").inputs(names[0])
    assert "is damaged and is made again" in caplog.text
    assert found is not None
    assert torch.equal(found.moment, expected)


def test_inputs_that_are_not_finite_name_the_layer(folder: Path) -> None:
    model = make_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    calibration = Calibration(model, linears(model), IDS, "model")
    with pytest.raises(QuantizationError, match=r"layers\.0\.mlp\.down_proj reads numbers that are not finite"):
        calibration.inputs("model.layers.0.mlp.up_proj")
    large = make_model("llama")
    large.model.layers[0].input_layernorm.weight.data.fill_(1e20)  # its square is more than float32 holds
    with pytest.raises(QuantizationError, match=r"layers\.0\.self_attn\.q_proj reads numbers that are not finite"):
        Calibration(large, linears(large), IDS, "large").inputs("model.layers.0.self_attn.q_proj")


def calibrated(quantizer: Any) -> Candidate:
    model = make_model("llama-tied")
    matrices = weights.inventory(model).weights
    store = VariantStore("model")
    candidate = Candidate(model, matrices, quantizer, 32, torch.device("cpu"), torch.float32, store=store)
    candidate.calibrate(Calibration(candidate.model, linears(model), IDS, "model"))
    return candidate


def test_a_candidate_is_calibrated_on_the_original_whatever_it_is_becoming(folder: Path) -> None:
    expected = whole_pass(make_model("llama-tied"))
    candidate = calibrated(GPTQ())
    candidate.use({w.name: 2 for w in candidate.weights})
    assert candidate.calibration is not None
    for name in expected:
        found = candidate.calibration.inputs(name)
        assert found is not None
        assert (found.moment - expected[name]).norm() < 1e-5 * expected[name].norm()


def test_calibrated_variants_are_stored_apart_and_hold_the_quantizers_codes(folder: Path) -> None:
    candidate = calibrated(GPTQ())
    name = "model.layers.1.mlp.down_proj"
    assert candidate.calibration is not None
    inputs = candidate.calibration.inputs(name)
    expected = GPTQ().quantize(candidate.stored(name), 3, 32, inputs)
    candidate.use({name: 3})
    assert torch.equal(candidate.weight(name, 3), expected.dequantize())
    assert torch.equal(candidate.variants.quantized(name, 3).codes, expected.codes)
    kinds = {path.name for path in (folder.parent / "variants" / "model").iterdir()}
    assert kinds == {"original", f"{GPTQ().key}-group32-{candidate.calibration.key}"}


def test_a_sliced_candidate_has_one_parent_for_all_widths(folder: Path) -> None:
    candidate = calibrated(MatGPTQ())
    name = "model.layers.0.mlp.up_proj"
    parent = candidate.variants.quantized(name, 8)
    x = torch.randn(4, 64)
    for bits in (2, 3, 8, 4):
        candidate.use({name: bits})
        assert torch.equal(candidate.weight(name, bits), parent.sliced(bits).dequantize())
        layer = candidate.model.get_submodule(name)
        expected = torch.nn.functional.linear(x, parent.sliced(bits).dequantize())
        assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    kind = next((folder.parent / "variants" / "model").glob("matgptq-*"))
    assert len([p for p in (kind / name).iterdir() if p.suffix == ".safetensors"]) == 1


def test_weights_that_are_not_finite_name_the_layer(folder: Path) -> None:
    candidate = calibrated(GPTQ())
    name = "model.layers.0.mlp.up_proj"
    candidate.stored(name)[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=r"The weights of model\.layers\.0\.mlp\.up_proj are not finite"):
        candidate.use({name: 3})


def test_a_layer_that_reads_nothing_is_quantized_without(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama")
    model.model.layers[0].mlp.spare = torch.nn.Linear(64, 64)
    with caplog.at_level(logging.INFO, "moopt"):
        assert Calibration(model, linears(model), IDS, "model").inputs("model.layers.0.mlp.spare") is None
    assert "Nothing of the calibration text is read by model.layers.0.mlp.spare" in caplog.text
