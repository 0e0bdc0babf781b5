"""Our merges against mergekit's, tensor for tensor. Runs where mergekit is installed: `make test-clients`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import Tensor

import moopt
from moopt.backend.merging import METHODS, Merger, Recipe, operators
from moopt.backend.metrics import CallableMetric
from moopt_problems import ModelMerge

pytestmark = pytest.mark.filterwarnings("default")  # of what mergekit imports
pytest.importorskip("mergekit", reason="mergekit is not installed; run make test-clients")

DENSITY, WEIGHTS = 0.6, {"a": 0.5, "b": 0.3, "c": 0.4}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny Llama in float32 and three models tuned from it at random."""
    place = tmp_path_factory.mktemp("family")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    words = {f"w{number}": number for number in range(50)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")))
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name in WEIGHTS:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return {name: str(place / name) for name in ("base", *WEIGHTS)}


def of_mergekit(method: str, family: dict[str, str], members: dict[str, float], place: Path) -> dict[str, Tensor]:
    """What mergekit writes, by tensor."""
    how, asked = METHODS[method], {"merge_method": method, "dtype": "float32"}
    if method == "slerp":
        first, second = members
        asked |= {
            "base_model": family[first], "models": [{"model": family[each]} for each in members],
            "parameters": {"t": members[second] / sum(members.values())},
        }  # fmt: skip
    else:
        density = {"density": DENSITY} if how.thins else {}
        asked["models"] = [{"model": family[n], "parameters": {"weight": w, **density}} for n, w in members.items()]
        if how.from_base:
            asked["base_model"] = family["base"]
    return ran(yaml.safe_dump(asked), place)


def ran(text: str, place: Path) -> dict[str, Tensor]:
    """What mergekit writes of a YAML text, by tensor."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(place), MergeOptions())
    found: dict[str, Tensor] = {}
    for file in place.glob("*.safetensors"):
        found |= load_file(file)
    return found


def fixed(probabilities: Tensor, *, generator: Any = None) -> Tensor:
    """Draws that depend on nothing but the probabilities and their number: the same mask for both."""
    uniform = torch.rand(probabilities.shape, generator=torch.Generator().manual_seed(probabilities.numel()))
    return (uniform < probabilities).to(probabilities.dtype)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_tensors_are_those_of_mergekit(
    method: str, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    members = {n: WEIGHTS[n] for n in "ab"} if METHODS[method].models == 2 else WEIGHTS
    monkeypatch.setattr(torch, "bernoulli", fixed)  # theirs
    monkeypatch.setattr(operators, "seeded", lambda seed: lambda: fixed)
    theirs = of_mergekit(method, family, members, tmp_path)
    base = family["base"] if METHODS[method].from_base else None
    merger = Merger({name: family[name] for name in members}, base)
    recipe = Recipe.of(method, members, dict.fromkeys(members, DENSITY))
    assert sorted(merger.names) == sorted(theirs)
    for name, ours in merger.tensors(recipe):
        assert torch.allclose(ours, theirs[name], rtol=0, atol=1e-6), name


EXPORTED = sorted(name for name, how in METHODS.items() if not how.draws)


@pytest.mark.parametrize("method", EXPORTED)
def test_what_is_exported_for_mergekit_gives_the_merge_that_was_searched(
    method: str, family: dict[str, str], tmp_path: Path
) -> None:
    members = ("a", "b") if METHODS[method].models == 2 else ("a", "b", "c")
    base = family["base"] if METHODS[method].from_base else None
    scale = 0.7 if METHODS[method].from_base else 1.0
    task = CallableMetric("norm", lambda model: float(model.lm_head.weight.norm()))
    problem = ModelMerge(
        {n: family[n] for n in members}, [task], base, method, scale=scale, validation=False, held_out=False
    )
    study = moopt.Study("merge", problem, "random", seed=3).run(trials=3)
    found = study.export(2, "mergekit", tmp_path / "out")
    theirs = ran((found.path / "mergekit.yaml").read_text(), tmp_path / "made")
    ours = load_file(study.export(2, "checkpoint", tmp_path / "ours").path / "model.safetensors")
    assert sorted(theirs) == sorted(ours)
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-6), name
