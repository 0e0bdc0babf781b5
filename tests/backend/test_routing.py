"""What MC-MoE weighs, against the routers' softmax and against blocks that are run with one expert changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moopt.backend import routing
from moopt.backend.experts import separate
from moopt.errors import BackendError
from moopt.mixtures import expert_losses, expert_widths
from tests.backend.conftest import MIXTURES, candidate_of, make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", list(MIXTURES))
def test_activations_and_weights_are_those_of_the_router(family: str) -> None:
    model = separate(make_model(family))
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].mlp.gate.register_forward_hook(lambda m, i, output: seen.append(output[0]))
    with torch.inference_mode():
        model.model(input_ids=IDS)
    handle.remove()
    best, chosen = seen[0].softmax(-1).topk(2)
    found = routing.measure(candidate_of(model), IDS, (4,))
    assert [each.name for each in found] == [f"model.layers.{i}.mlp.experts" for i in (0, 1)]
    for expert in range(4):
        mine = chosen == expert
        assert found[1].activations[expert] == pytest.approx(int(mine.sum()) / 120)
        assert found[1].weights[expert] == pytest.approx(float(best[mine].sum()) / 120, rel=1e-4)
    assert found[1].activations.sum() == pytest.approx(2)
    assert found[1].weights.sum() < 1  # not normalised: the other experts' probabilities are missing


@pytest.mark.parametrize("family", list(MIXTURES))
def test_errors_are_of_the_blocks_output_with_one_expert_changed(family: str) -> None:
    candidate = candidate_of(separate(make_model(family)))
    block, outputs = candidate.model.model.layers[0].mlp, []
    block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = routing.measure(candidate, IDS, (2, 4))[0]
    outputs.clear()
    with torch.inference_mode():
        candidate.model.model(input_ids=IDS)
        for expert in range(4):
            for column, bits in enumerate((2, 4)):
                every = found.options((bits,) * 4)
                candidate.use({name: every[name] for name in every if f".experts.{expert}." in name})
                candidate.model.model(input_ids=IDS)
                error = float((outputs[-1] - outputs[0]).norm())
                assert found.errors[expert, column] == pytest.approx(error, rel=1e-3)
                assert error > 0


def test_what_is_measured_goes_into_the_programme() -> None:
    candidate = candidate_of(separate(make_model("mixtral")))
    for found in routing.measure(candidate, IDS, (2, 3, 4)):
        losses = expert_losses(found.activations, found.weights, found.errors)
        assert (np.diff(losses) < 0).all()
        options = found.options(expert_widths(losses, 12, (2, 3, 4)).tolist())
        assert len(options) == 12
        assert {3, 4} <= set(options.values())
        candidate.use(options)


def test_an_expert_that_no_token_reaches_loses_nothing() -> None:
    found = routing.measure(candidate_of(separate(make_model("olmoe"))), IDS[:1, :1], (2,))[0]
    idle = found.activations == 0
    assert idle.sum() == 2
    assert (found.errors[idle] == 0).all()
    assert (found.weights[idle] == 0).all()


def test_models_without_experts_are_refused() -> None:
    with pytest.raises(BackendError, match="LlamaForCausalLM has no experts"):
        routing.measure(candidate_of(make_model("llama")), IDS, (4,))
    with pytest.raises(BackendError, match="Got 3 options; expected one for each of 4 experts"):
        routing.measure(candidate_of(separate(make_model("olmoe"))), IDS, (4,))[0].options((2, 3, 4))


def test_a_router_that_is_no_softmax_is_refused() -> None:
    candidate = candidate_of(separate(make_model("mixtral")))
    gate = candidate.model.model.layers[0].mlp.gate
    gate.register_forward_hook(lambda m, i, output: (output[0], torch.full_like(output[1], 0.5), output[2]))
    with pytest.raises(BackendError, match=r"routing weights of model.layers.0.mlp.experts are not those of a softmax"):
        routing.measure(candidate, IDS, (4,))
