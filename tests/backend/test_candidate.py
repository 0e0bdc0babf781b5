"""A candidate runs from packed codes: with the values of its dequantized weights, at any width, and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moopt.backend import language, quantizers, weights
from moopt.backend.candidate import Candidate
from moopt.backend.quantized_linear import QuantizedLinear
from moopt.backend.variant_store import VariantStore
from moopt_kernels import KernelError, calls, choose_layout, dispatch, layout_name, reset_calls
from tests.backend.conftest import candidate_of, make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["cpu", "reference"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the C++ kernels, and without any: all weights are dense then."""
    monkeypatch.setenv("MOOPT_KERNELS", request.param)
    try:
        choose_layout("cpu")
    except KernelError as error:
        pytest.skip(str(error))
    return str(request.param)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


def mixed(candidate: Candidate) -> dict[str, int]:
    return {w.name: (2, 3, 4, 6)[i % 4] if w.kind == "linear" else 8 for i, w in enumerate(candidate.weights)}


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "opt"])
def test_it_becomes_any_mixture_and_the_original_again(kernels: str, family: str) -> None:
    candidate, dense = candidate_of(make_model(family)), make_model(family)
    before = logits(candidate.model)
    widths = mixed(candidate)
    for chosen in (widths, {name: 8 for name in widths}, dict(list(widths.items())[:3])):
        candidate.use(chosen)
        for weight in candidate.weights:
            values = candidate.weight(weight.name, chosen.get(weight.name))
            weights.module_of(dense, weight).weight.data = values
        found, expected = logits(candidate.model), logits(dense)
        assert (found - expected).norm() / expected.norm() < 1e-5
        with candidate.differentiable():
            assert torch.equal(logits(candidate.model), expected)
        assert torch.equal(logits(candidate.model), found)
    candidate.use({})
    assert torch.equal(logits(candidate.model), before)


def test_the_values_are_the_quantizers(kernels: str) -> None:
    candidate = candidate_of(make_model("llama"))
    for bits in (2, 3, 8):
        name = candidate.weights[3].name
        assert torch.equal(candidate.weight(name, bits), candidate.variants.quantized(name, bits).dequantize())


def test_every_quantized_linear_runs_on_the_kernels(kernels: str) -> None:
    candidate = candidate_of(make_model("llama-tied"))
    candidate.use(mixed(candidate))
    reset_calls()
    logits(candidate.model)
    linears = sum(w.kind == "linear" for w in candidate.weights)
    assert calls().get(("quantized_linear", "cpu"), 0) == (linears if kernels == "cpu" else 0)
    assert calls().get(("quantized_linear", "reference"), 0) == 0


def test_kl_on_packed_and_on_dequantized_weights_agree_in_bfloat16() -> None:
    model = make_model("llama-tied")
    matrices = weights.inventory(model).weights
    candidate = Candidate(model, matrices, quantizers.RTN(), 32, torch.device("cpu"), torch.bfloat16)
    head = language.head_of(candidate.model)
    reference = language.observe(candidate.model, IDS, head, head)
    candidate.use({w.name: 4 for w in matrices if w.kind == "linear"})
    packed = language.compare(candidate.model, reference, head).kl.mean()
    with candidate.differentiable():
        dense = language.compare(candidate.model, reference, head).kl.mean()
    assert float(packed) == pytest.approx(float(dense), rel=0.01)


def test_variants_are_stored_packed_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    if choose_layout("cpu") == "plain":
        pytest.skip("Without kernels, dense variants are stored.")

    def made() -> Candidate:
        model = make_model("llama-tied")
        matrices = weights.inventory(model).weights
        store = VariantStore("model")
        return Candidate(model, matrices, quantizers.RTN(), 32, torch.device("cpu"), torch.bfloat16, store=store)

    first = made()
    first.prepare({w.name: (2, 8) for w in first.weights if w.kind == "linear"})
    files = {file.stem for file in (tmp_path / "variants" / "model" / "rtn-1-group32").rglob("*.safetensors")}
    layout = layout_name(first.layout)
    assert files == {f"2-{layout}", f"8-{layout}"}
    second = made()
    second.use({w.name: 2 for w in second.weights if w.kind == "linear"})
    first.use(second.current)
    assert torch.equal(logits(first.model), logits(second.model))
    layers = [m for m in second.model.modules() if isinstance(m, QuantizedLinear)]
    assert {m.matrix.layout for m in layers} == {"cpu"}
    assert sum(m.matrix.nbytes for m in layers) < sum(m.in_features * m.out_features for m in layers) // 2
    assert dispatch.READY >= {"cpu"}
