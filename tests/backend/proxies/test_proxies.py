"""Every proxy on tiny models: against gradients, Hessians and losses that autograd and the evaluator give directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moopt
from moopt import Resources
from moopt.backend import proxies
from moopt.backend.proxies import curvature, trace
from moopt.errors import ProblemError
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

SMALL: dict[str, Any] = {
    "group_size": 32,
    "text": "prose",
    "tokens": 256,
    "context": 64,
    "held_out": 0,
    "validation": 0,
}


@pytest.fixture(scope="module")
def problem(tiny: Path) -> BitAllocation:
    made = BitAllocation(str(tiny), bits=(2, 4, 8), **SMALL)
    made.setup(Resources())
    return made


def asked(problem: BitAllocation, tokens: int) -> tuple[proxies.Request, Any]:
    problem.sensitivities("weight-error", 0)  # set to the original
    return proxies.Request(tuple(problem.decided.values()), tokens, 256), problem._ready.evaluator


@pytest.mark.parametrize("name", proxies.names())
def test_every_proxy_gives_a_table_and_falls_with_the_width(problem: BitAllocation, name: str) -> None:
    table = problem.sensitivities(name, 1024)
    assert table.shape == (8, 3)
    assert np.isfinite(table).all()
    assert (table >= 0).all()
    assert table[:, 0].sum() > 4 * table[:, 2].sum()
    assert np.array_equal(problem.sensitivities(name, 1024), table)


def test_the_tables_feed_a_study(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 4, 8), **SMALL, sensitivities="hawq-v2", sensitivity_tokens=512)
    history = moopt.Study("hawq", problem, "random").run(trials=5).history
    assert any((t.label or "").startswith("knapsack") for t in history.trials)
    table = next(e for e in history.events if e.job.kind == "sensitivity" and e.outcome is not None)
    assert table.tokens == 9 * 512


def test_costs_are_in_forward_tokens(problem: BitAllocation) -> None:
    def cost(name: str) -> int:
        return problem.forward_tokens("sensitivity", Fidelity(1024, name))

    assert cost("weight-error") == 0
    assert cost("output-error") == 1024
    assert {cost(n) for n in ("fisher", "fisher-columns", "slope", "fisher-diagonal", "hawq")} == {3 * 1024}
    assert cost("hawq-v2") == 9 * 1024
    assert cost("one-layer") == 8 * 3 * 256
    assert cost("higgs") == (1 + 8) * 256


def test_the_trace_is_that_of_the_kl_and_of_the_sampled_fisher(problem: BitAllocation) -> None:
    request, evaluator = asked(problem, 4096)
    traces = trace.hessian_traces(request, evaluator)
    squares = dict.fromkeys(traces, 0.0)

    def look(row: int, weight: Any, gradients: torch.Tensor) -> None:
        squares[weight.name] += float(gradients.float().square().sum())

    ids = request.sequences(evaluator)
    generator = torch.Generator().manual_seed(1)
    for part in ids.split(6):
        curvature._backward(request, evaluator, part, look, generator)
    for name, value in traces.items():
        assert value == pytest.approx(squares[name] / ids.numel(), rel=0.35), name


def test_the_top_eigenvalue_lies_between_the_mean_and_the_trace(problem: BitAllocation) -> None:
    request, evaluator = asked(problem, 4096)
    traces, largest = trace.hessian_traces(request, evaluator), curvature.top_eigenvalues(request, evaluator)
    counts = {w.name: w.count for d in request.decisions for w in d.weights}
    for name, value in largest.items():
        assert 10 * traces[name] / counts[name] < value < traces[name]


def test_output_errors_are_those_of_the_outputs(problem: BitAllocation) -> None:
    request, evaluator = asked(problem, 512)
    seen: list[torch.Tensor] = []
    evaluator.candidate.use({})
    module = evaluator.candidate.model.get_submodule(request.decisions[0].weights[0].name)
    handle = module.register_forward_pre_hook(lambda m, x: seen.append(x[0].flatten(0, 1).double()))
    with torch.inference_mode(), handle:
        evaluator.candidate.model(input_ids=request.sequences(evaluator))
    x = torch.cat(seen)
    table = problem.sensitivities("output-error", 512)
    expected = 0.0
    for member in request.decisions[0].weights:  # q, k and v read the same inputs
        original = evaluator.candidate.weight(member.name, None).double()
        delta = evaluator.candidate.weight(member.name, 4).double() - original
        expected += float((x @ delta.T).square().sum() / (x @ original.T).square().sum())
    assert table[0, 1] == pytest.approx(expected, rel=0.02)


def test_noise_leaves_no_trace_behind(problem: BitAllocation) -> None:
    before = problem.sensitivities("one-layer", 256)
    problem.sensitivities("higgs", 256)
    assert np.array_equal(problem.sensitivities("one-layer", 256), before)


def test_the_slope_is_that_of_the_texts_own_loss(problem: BitAllocation) -> None:
    request, evaluator = asked(problem, 512)
    model, decision = evaluator.candidate.model, request.decisions[2]
    ids = request.sequences(evaluator)
    parameters = [model.get_submodule(w.name).weight.requires_grad_() for w in decision.weights]
    with torch.enable_grad():
        logs = model(input_ids=ids).logits.float().log_softmax(-1)[:, :-1]
        loss = -logs.gather(-1, ids[:, 1:, None]).sum() / ids.numel()
        gradients = torch.autograd.grad(loss, parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    expected = 0.0
    for weight, gradient in zip(decision.weights, gradients, strict=True):
        delta = (
            evaluator.candidate.weight(weight.name, 2).float() - evaluator.candidate.weight(weight.name, None).float()
        )
        expected += float((gradient.float() * delta).sum())
    assert problem.sensitivities("slope", 512)[2, 0] == pytest.approx(abs(expected), rel=0.1)


def test_embeddings_are_measured_where_a_proxy_knows_nothing_of_them(save: Callable[[str], Path]) -> None:
    decided = BitAllocation(str(save("llama")), bits=(4, 8), embedding=(4, 8), **SMALL)
    table = decided.sensitivities("fisher-diagonal", 512)
    assert np.array_equal(table[-1], decided.sensitivities("one-layer", 512)[-1])
    assert decided.forward_tokens("sensitivity", Fidelity(512, "fisher-diagonal")) == 3 * 512 + 4 * 256
    with pytest.raises(ProblemError, match=r"knows linear layers only.* these would do: weight-error, slope"):
        decided.sensitivities("hawq", 512)


def test_an_encoder_has_the_proxies_that_need_no_vocabulary() -> None:
    with pytest.raises(
        ProblemError, match="a vocabulary; these would do: weight-error, output-error, shiftaddllm, higgs"
    ):
        BitAllocation("minilm-l6", sensitivities="fisher")


def test_an_unknown_proxy_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        ProblemError, match="no proxy 'hessian'; expected one of weight-error, output-error, shiftaddllm"
    ):
        proxies.named("hessian")
