"""Dropping experts while a mixture runs: by the rule, really skipped, counted, and never of tokens that matter."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moopt.backend import pruning, quantizers
from moopt.backend.evaluator import LanguageEvaluator
from moopt.backend.experts import separate
from moopt.backend.pruning import Pruning
from moopt.backend.text import Text
from moopt.errors import BackendError
from moopt.problem import Fidelity, Resources
from moopt_kernels import choose_layout
from tests.backend.conftest import MIXTURES, make_model

IDS = torch.randint(0, 320, (3, 60), generator=torch.Generator().manual_seed(0))
BLOCKS = [f"model.layers.{i}.mlp.experts" for i in (0, 1)]
EXPERT = 3 * 64 * 128


def mixture(family: str) -> Any:
    """A random model whose experts matter."""
    model = separate(make_model(family))
    for name in BLOCKS:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.mul_(4)
    return model


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def given(model: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """What the experts of each block are given, before anything is dropped."""
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda m, inputs, name=name: seen.update({name: inputs}))
        for name in BLOCKS
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return seen


def test_a_threshold_of_one_leaves_a_mixtral_of_one_expert() -> None:
    model = mixture("mixtral")
    with Pruning(model, dict.fromkeys(BLOCKS, 1.0), protect=0) as found:
        pruned = logits(model)
    assert found.active_experts == dict.fromkeys(BLOCKS, 1.0)
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 1
    torch.testing.assert_close(pruned, logits(model))


def test_experts_below_the_threshold_are_dropped_of_any_number_and_the_rest_keep_the_sum() -> None:
    weighed = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.1, 0.3], [0.5, 0.2, 0.2]])
    keep = pruning.kept(weighed, 0.5)
    assert keep.tolist() == [[True, True, False], [True, False, True], [True, False, False]]
    found = pruning.renormalised(weighed, keep)
    expected = [[0.625, 0.375, 0], [0.4 * 8 / 7, 0, 0.3 * 8 / 7], [0.9, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert pruning.kept(weighed, 0.0).all()


def test_what_is_dropped_is_not_computed_and_what_runs_is_counted() -> None:
    model = mixture("mixtral")
    ran: dict[str, int] = dict.fromkeys(BLOCKS, 0)
    for name in BLOCKS:
        for expert in model.get_submodule(name):
            expert.register_forward_hook(lambda m, i, out, name=name: ran.update({name: ran[name] + len(out)}))
    weighed = given(model)[BLOCKS[1]][2]
    expected = int(pruning.kept(weighed, 0.6).sum())
    assert 180 < expected < 360
    ran.update(dict.fromkeys(BLOCKS, 0))
    total = sum(p.numel() for p in model.parameters())
    with Pruning(model, {BLOCKS[1]: 0.6}, protect=0) as found:
        logits(model)
    assert ran == {BLOCKS[0]: 360, BLOCKS[1]: expected}
    assert found.active_experts == {BLOCKS[0]: 2.0, BLOCKS[1]: expected / 180}
    assert found.active_parameters == pytest.approx(total - 2 * 4 * EXPERT + (2 + expected / 180) * EXPERT)


@pytest.mark.parametrize("family", list(MIXTURES))
def test_nothing_is_left_of_it_afterwards(family: str) -> None:
    model = mixture(family)
    before, form = logits(model), model.config._attn_implementation
    with Pruning(model, dict.fromkeys(BLOCKS, 1.0)):
        assert not torch.equal(logits(model), before)
    assert model.config._attn_implementation == form
    assert torch.equal(logits(model), before)
    with Pruning(model, dict.fromkeys(BLOCKS, 0.0)) as off:  # and attention runs as ever
        assert torch.equal(logits(model), before)
    assert off.active_experts == dict.fromkeys(BLOCKS, 2.0)


def test_attention_received_is_a_sum_over_queries_not_over_keys() -> None:
    attention = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.2, 0.0], [0.6, 0.1, 0.3]]).expand(1, 2, 3, 3)
    found = pruning.attention_received(attention)
    torch.testing.assert_close(found, torch.tensor([[2.4 / 3, 0.3 / 2, 0.3]]))
    heads = torch.stack([attention[0, 0], torch.eye(3)])[None]
    torch.testing.assert_close(
        pruning.attention_received(heads), torch.tensor([[(2.4 + 1) / 6, (0.3 + 1) / 4, (0.3 + 1) / 2]])
    )
    cached = attention[:, :, 1:]  # two queries after a key that was there before
    torch.testing.assert_close(pruning.attention_received(cached), torch.tensor([[0.3 / 2, 0.3]]))


def test_the_tokens_that_matter_keep_all_their_experts() -> None:
    model = mixture("mixtral")
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = model(input_ids=IDS, output_attentions=True).attentions[0]
    states = given(model)[BLOCKS[0]][0].view(3, 60, 64)
    received = attention.mean(1).sum(1) / torch.arange(60, 0, -1)
    importance = states.abs().sum(-1) * received
    top = importance.topk(6, dim=1).indices
    model.set_attn_implementation("sdpa")
    seen: list[Tensor] = []
    with Pruning(model, {BLOCKS[0]: 1.0}, protect=0.1) as found:
        model.get_submodule(BLOCKS[0]).register_forward_pre_hook(lambda m, inputs: seen.append(inputs[1]))
        logits(model)
    whole = (seen[0] < 4).all(-1).view(3, 60)
    assert torch.equal(whole, torch.zeros(3, 60, dtype=torch.bool).scatter(1, top, True))
    assert found.active_experts[BLOCKS[0]] == pytest.approx(1.1)


def test_generating_token_by_token_protects_none() -> None:
    model = mixture("mixtral")
    with Pruning(model, dict.fromkeys(BLOCKS, 1.0), protect=0.1) as found:
        model.generate(IDS[:1, :20], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert found.active_experts[BLOCKS[0]] == pytest.approx((20 + 2 + 4) / 24)


def test_thresholds_are_medians_of_second_over_first() -> None:
    model = mixture("olmoe")
    ratios = {}
    for name, (_, _, weighed) in given(model).items():
        first, second = weighed.sort(descending=True).values[:, :2].T
        ratios[name] = (second / first).numpy()
    found = pruning.calibrated_thresholds(model, IDS)
    assert found == pytest.approx({name: float(np.median(own)) for name, own in ratios.items()}, rel=1e-4)
    with Pruning(model, found, protect=0) as pruned:
        logits(model)
    assert pruned.active_experts[BLOCKS[0]] == pytest.approx(1.5)
    lower = pruning.calibrated_thresholds(model, IDS, quantile=0.25)
    assert all(lower[name] < found[name] for name in BLOCKS)


def test_the_least_sensitive_blocks_are_those_that_lose_least_alone() -> None:
    model = mixture("mixtral")
    every = dict.fromkeys(BLOCKS, 0.8)
    losses = pruning.losses_alone(model, IDS, every)
    original = logits(model).log_softmax(-1)
    for name in BLOCKS:
        with Pruning(model, {name: 0.8}):
            changed = logits(model).log_softmax(-1)
        kl = (original.exp() * (original - changed)).sum(-1).mean()
        assert losses[name] == pytest.approx(float(kl), rel=1e-3)
    least = min(BLOCKS, key=losses.__getitem__)
    assert pruning.least_sensitive(every, losses, 1) == {least: 0.8}
    assert pruning.least_sensitive(every, losses, 0.5) == {least: 0.8}
    assert pruning.least_sensitive(every, losses) == every
    assert pruning.least_sensitive(every, losses, 0) == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_candidate_is_measured_pruned_against_the_original_that_is_not(
    save: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    choose_layout("cpu")
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    evaluator = LanguageEvaluator(
        str(save("mixtral")),
        quantizers.named("gptq"),
        32,
        Text(textwrap.__file__),
        64,
        {},
        Resources(),
        512,
        {},
        stream,
    )
    fidelity = Fidelity(256, 0)
    options = {w.name: 4 for w in evaluator.candidate.weights if w.kind == "linear"}
    plain = evaluator.measure(options, fidelity).values["kl"]
    exact = pruning.measure(evaluator, options, fidelity, {}).values
    found = pruning.measure(evaluator, options, fidelity, dict.fromkeys(BLOCKS, 1.0)).values
    original = pruning.measure(evaluator, {}, fidelity, dict.fromkeys(BLOCKS, 1.0)).values
    assert exact["kl"] == plain
    assert found["kl"] > plain
    assert original["kl"] > 0
    dropped = 2 * 0.98 * EXPERT  # 1 of 64 tokens of a sequence keeps both in both blocks
    assert (exact["active_parameters"] - found["active_parameters"]) * 1e6 == pytest.approx(dropped, rel=0.01)
    assert evaluator.measure(options, fidelity).values["kl"] == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"model.layers.7.mlp.experts": 0.5},), "threshold for 'model.layers.7.mlp.experts'; expected some of model"),
        (({BLOCKS[0]: 1.5},), "Got 1.5 for model.layers.0.mlp.experts; expected a number from 0 to 1"),
        (({BLOCKS[0]: 0.5}, -0.1), "Got -0.1 for protect"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Pruning(mixture("mixtral"), *arguments)


def test_models_and_numbers_that_cannot_be_pruned_are_refused() -> None:
    with pytest.raises(BackendError, match="has no experts that are taken apart"):
        Pruning(make_model("llama"), {})
    with pytest.raises(BackendError, match=r"Got blocks=1.5"):
        pruning.least_sensitive({}, {}, 1.5)
    with (
        Pruning(mixture("mixtral"), {}) as nothing,
        pytest.raises(BackendError, match="No text went through"),
    ):
        nothing.active_parameters  # noqa: B018
