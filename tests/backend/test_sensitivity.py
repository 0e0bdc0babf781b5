"""Slopes against autograd's, and the sampled Fisher table against measured KL."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from moopt.backend import language, sensitivity, weights
from moopt.backend.candidate import Candidate
from moopt.backend.taps import Decision, Forward
from tests.backend.conftest import candidate_of, make_model

BITS = (3, 4, 8)


def tiny() -> tuple[Candidate, list[Decision], language.Head]:
    """A little model as the original, its fused decisions, and its head."""
    candidate = candidate_of(make_model("llama"))
    linears = weights.inventory(candidate.model).linears()
    decisions = [Decision(members, BITS) for members in weights.groups(linears, "fused").values()]
    return candidate, decisions, language.head_of(candidate.model)


def test_slopes_equal_those_of_full_weight_gradients() -> None:
    candidate = candidate_of(make_model("llama"))
    linears = weights.inventory(candidate.model).linears()
    decisions = [Decision(members, BITS) for members in weights.groups(linears, "fused").values()]
    ids = torch.randint(0, 320, (4, 24), generator=torch.Generator().manual_seed(1))
    head = language.head_of(candidate.model)
    with torch.inference_mode():
        original = candidate.model(input_ids=ids).logits.double()
    reference = language.observe(candidate.model, ids, head, head)
    candidate.use({w.name: 4 for w in linears})
    kl, linear, curvature = sensitivity.gradient(candidate, decisions, head, reference, seed=0)

    with candidate.differentiable():
        parameters = {w.name: weights.module_of(candidate.model, w).weight for w in linears}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        p, q = original.log_softmax(-1), candidate.model(input_ids=ids).logits.double().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum(-1).mean()
        loss.backward()
    assert np.isclose(kl, loss.item(), rtol=1e-4)
    for row, decision in enumerate(decisions):
        for column, bits in enumerate(BITS):
            slope = sum(
                (parameters[w.name].grad * (candidate.weight(w.name, bits) - candidate.weight(w.name, 4))).sum().item()
                for w in decision.weights
            )
            assert np.isclose(linear[row, column], slope, rtol=1e-3, atol=1e-6)
    assert (linear[:, 1] == 0).all()
    assert (curvature[:, 1] == 0).all()
    assert (curvature[:, [0, 2]] > 0).all()


@pytest.mark.parametrize("by", ["changes", "columns"])
def test_the_sampled_fisher_predicts_the_kl_of_small_changes(by: sensitivity.By) -> None:
    candidate = candidate_of(make_model("llama-tied"))
    linears = weights.inventory(candidate.model).linears()
    decisions = [Decision(members, (5,)) for members in weights.groups(linears, "block").values()]
    ids = torch.randint(0, 320, (256, 16), generator=torch.Generator().manual_seed(1))
    head = language.head_of(candidate.model)
    table = sensitivity.sampled_fisher(candidate, decisions, head, ids, seed=0, by=by)
    reference = language.observe(candidate.model, ids, head, head)
    for row, decision in enumerate(decisions):
        candidate.use({w.name: 5 for w in decision.weights})
        measured = float(language.compare(candidate.model, reference, head).kl.mean())
        assert 0.6 < table[row, 0] / measured < 1.6


def test_by_columns_the_part_of_each_input_is_squared_for_itself() -> None:
    candidate, decisions, head = tiny()
    ids = torch.randint(0, 320, (4, 24), generator=torch.Generator().manual_seed(1))
    table = sensitivity.sampled_fisher(candidate, decisions, head, ids, seed=3, by="columns")
    expected = np.zeros(table.shape)

    def look(row: int, weight: weights.Weight, gradients: torch.Tensor) -> None:
        for column, bits in enumerate(BITS):
            change = candidate.weight(weight.name, bits) - candidate.weight(weight.name, None)
            expected[row, column] += float((gradients * change).sum(1).square().sum()) / (2 * ids.numel())

    with candidate.differentiable(), Forward(candidate, decisions, ids) as hidden:
        generator = torch.Generator().manual_seed(3)
        hidden.backward(sensitivity.sampled_gradient(hidden.states, head, generator), look)
    np.testing.assert_allclose(table, expected, rtol=1e-3)
    assert (np.diff(table, axis=1) < 0).all()


def test_by_columns_a_table_depends_less_on_its_text() -> None:
    candidate, decisions, head = tiny()
    spread = {}
    for by in ("changes", "columns"):
        tables = []
        for seed in range(12):
            ids = torch.randint(0, 320, (6, 16), generator=torch.Generator().manual_seed(seed))
            tables.append(sensitivity.sampled_fisher(candidate, decisions, head, ids, seed, by))  # type: ignore[arg-type]
        spread[by] = np.log(tables).std(axis=0)
    assert (spread["columns"] < spread["changes"]).mean() > 0.9
    assert np.median(spread["columns"]) < 0.6 * np.median(spread["changes"])


def test_a_model_is_let_go_of_after_its_gradients():
    candidate, decisions, head = tiny()
    ids = torch.randint(0, 320, (4, 16), generator=torch.Generator().manual_seed(1))
    sensitivity.sampled_fisher(candidate, decisions, head, ids, seed=0)
    model = weakref.ref(candidate.model)
    del candidate, decisions, head
    gc.collect()
    assert model() is None
