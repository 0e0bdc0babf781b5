"""Mixture-of-experts: each expert's matrices are decisions of their own, and see only the tokens it is given."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import moopt
from moopt.backend import models, packed, weights
from moopt.backend.calibration import Calibration
from moopt.backend.experts import Experts, separate
from moopt.backend.taps import Decision, Forward
from moopt.errors import ProblemError
from moopt.problem import Fidelity
from moopt_kernels import choose_layout
from moopt_problems import BitAllocation
from tests.backend.conftest import MIXTURES, candidate_of, make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {
    "bits": (2, 4), "group_size": 32, "text": textwrap.__file__, "tokens": 256, "context": 64, "held_out": 0, 
    "validation": 0, "sensitivity_tokens": 256, "calibration_tokens": 512,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_layout("cpu")  # compiled kernels come from the usual cache
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))


@pytest.mark.parametrize("family", list(MIXTURES))
def test_experts_taken_apart_give_the_same(family: str) -> None:
    model = make_model(family)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        found = separate(model)(input_ids=IDS).logits
    assert isinstance(model.model.layers[0].mlp.experts, Experts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_experts_of_another_form_stay_stacked() -> None:
    config = transformers.GptOssConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=2, num_experts_per_tok=1, vocab_size=320, head_dim=32,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    found = weights.inventory(separate(model))
    assert weights.expert_parameters(found) > 0


def test_an_expert_is_calibrated_on_the_tokens_it_is_given(folder: None) -> None:
    model = separate(make_model("mixtral"))
    layer, seen = model.model.layers[1].mlp, {}
    layer.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].reshape(-1, 64)))
    layer.gate.register_forward_hook(lambda module, inputs, output: seen.update(chosen=output[2]))
    with torch.inference_mode():
        model.model(input_ids=IDS)
    names = [w.name for w in weights.inventory(model).linears()]
    calibration = Calibration(model, names, IDS, "model")
    for number in range(4):
        own = seen["x"][(seen["chosen"] == number).any(1)]
        expert = f"model.layers.1.mlp.experts.{number}"
        found = calibration.inputs(f"{expert}.gate_proj")
        assert found is not None
        assert found is calibration.inputs(f"{expert}.up_proj")
        assert found.tokens == len(own)
        torch.testing.assert_close(found.moment, own.T @ own / len(own), rtol=1e-4, atol=1e-4)


def test_experts_that_no_token_reaches_are_said_once(folder: None, caplog: pytest.LogCaptureFixture) -> None:
    model = separate(make_model("olmoe"))
    names = [w.name for w in weights.inventory(model).linears()]
    calibration = Calibration(model, names, IDS[:1, :1], "model")
    with caplog.at_level(logging.INFO, "moopt"):
        found = [calibration.inputs(f"model.layers.0.mlp.experts.{number}.down_proj") for number in range(4)]
    assert sorted(inputs is None for inputs in found) == [False, False, True, True]
    assert len(caplog.records) == 1


def test_gradients_of_an_expert_are_those_of_each_sequence() -> None:
    candidate = candidate_of(separate(make_model("mixtral")))
    name = "model.layers.0.mlp.experts.1.down_proj"
    weight = next(w for w in candidate.weights if w.name == name)
    shown: list[Tensor] = []
    toward = torch.randn(IDS.numel(), 64, generator=torch.Generator().manual_seed(1))
    look = lambda row, weight, gradients: shown.append(gradients)  # noqa: E731
    with Forward(candidate, [Decision((weight,), (4,))], IDS) as hidden:
        hidden.backward(toward, look)
    matrix = candidate.model.get_submodule(name).weight.requires_grad_()
    states = candidate.model.model(input_ids=IDS).last_hidden_state
    for number, direction in enumerate(toward.view(*states.shape)):
        (expected,) = torch.autograd.grad((states[number] * direction).sum(), matrix, retain_graph=True)
        torch.testing.assert_close(shown[0][number], expected, rtol=1e-3, atol=1e-4)


def test_experts_are_decided_alone_or_together(save: Callable[[str], Path]) -> None:
    found = weights.inventory(models.outline(models.load_config(str(save("qwen2-moe"))))).linears()
    each = [n for n in weights.groups(found, "fused") if n.startswith("1.")]
    assert each[:2] == ["1.q_k_v", "1.o"]
    assert [n for n in each if "experts.2" in n] == ["1.experts.2.gate_up", "1.experts.2.down"]
    together = weights.groups(found, "experts")
    assert [n for n in together if n.startswith("1.experts")] == ["1.experts.gate_up", "1.experts.down"]
    assert len(together["1.experts.gate_up"]) == 8
    assert len(weights.groups(found, "linear")) == len(found)


@pytest.mark.parametrize(("family", "quantizer"), [("mixtral", "rtn"), ("olmoe", "rtn"), ("qwen2-moe", "gptq")])
def test_a_mixture_is_measured_whole_and_streamed_saved_and_loaded(
    save: Callable[[str], Path], folder: None, tmp_path: Path, family: str, quantizer: str
) -> None:
    found = []
    for stream in (False, True):
        problem = BitAllocation(str(save(family)), quantizer=quantizer, stream=stream, **SMALL)
        config = problem.space.sample(np.random.default_rng(0))
        found.append(problem.evaluate(config, Fidelity(256, 0)).samples)
    assert found[0] == found[1]
    path = problem.save(config, tmp_path / "model.safetensors")
    assert path.stat().st_size == problem.bytes(config)
    assert any("experts" in name for name in packed.read(path).matrices)
    ids = IDS[:1, :8]
    assert moopt.load(path).generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (1, 10)


def test_a_mixture_is_not_timed(save: Callable[[str], Path]) -> None:
    with pytest.raises(ProblemError, match="decode_ms or prefill_ms, and a mixture of experts"):
        BitAllocation(str(save("olmoe")), objectives=("kl", "decode_ms"), **SMALL)
