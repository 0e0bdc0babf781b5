"""The measures against a plain oracle: all logits of both models, in float64."""

from __future__ import annotations

import pytest
import torch

from moopt.backend import language
from tests.backend.conftest import FAMILIES, candidate_of, make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.double()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_kl_perplexity_and_agreement_equal_the_oracle(family: str) -> None:
    candidate = candidate_of(make_model(family))
    widths = {w.name: 3 if w.kind == "linear" else 8 for w in candidate.weights}
    original = language.head_of(candidate.model)
    before = logits(candidate.model)
    table = next((w.name for w in candidate.weights if w.kind == "head"), None)
    table = table or next(w.name for w in candidate.weights if w.kind == "embedding")
    head = language.Head(candidate.weight(table, 8), original.bias, original.scale)
    reference = language.observe(candidate.model, IDS, original, head)
    candidate.use(widths)
    found = language.compare(candidate.model, reference, head)
    after = logits(candidate.model)
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    assert torch.allclose(found.kl.double(), (p.exp() * (p - q)).sum(-1), atol=1e-4)
    nll = -q[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    assert torch.allclose(found.nll.double(), nll, atol=1e-4)
    assert (found.agrees == (before.argmax(-1) == after.argmax(-1))).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_original_is_no_way_from_itself(dtype: torch.dtype) -> None:
    model = make_model("llama").to(dtype)
    head = language.head_of(model)
    found = language.compare(model, language.observe(model, IDS, head, head), head)
    assert found.kl.abs().max() < 2e-3
    assert abs(float(found.kl.mean())) < 2e-5
    assert found.agrees.all()


def test_tiles_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    head = language.head_of(model)
    reference = language.observe(model, IDS, head, head)
    for parameter in model.model.layers.parameters():
        parameter.data.mul_(1.05)
    whole = language.compare(model, reference, head)
    monkeypatch.setattr(language, "COLUMNS", 7)
    monkeypatch.setattr(language, "ROWS", 11)
    tiled = language.compare(model, reference, head)
    assert torch.allclose(whole.kl, tiled.kl, atol=1e-5)
    assert torch.allclose(whole.nll, tiled.nll, atol=1e-5)
    assert torch.equal(whole.agrees, tiled.agrees)
