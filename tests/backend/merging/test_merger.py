"""Merging whole models: filled in place, saved in the base's layout, seeded by the recipe, refused if they differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from moopt.backend import models
from moopt.backend.merging import Merger, Recipe
from moopt.backend.merging.merger import gradients
from moopt.backend.merging.recipe import group
from moopt.errors import MergeError, ModelNotFound


@pytest.fixture(scope="module")
def merger(family: dict[str, str]) -> Merger:
    return Merger({n: family[n] for n in "abc"}, family["base"])


def weights(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_a_filled_model_computes_with_the_merge(merger: Merger, family: dict[str, str]):
    model = models.load_model(family["base"])
    distance = merger.fill(model, Recipe.of("task_arithmetic", {"a": 1.0, "b": 0.5, "c": 0.0}))
    base, a, b = (weights(family[n]) for n in ("base", "a", "b"))
    expected = {n: w + (a[n] - w) + 0.5 * (b[n] - w) for n, w in base.items()}
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-6)
    moved = sum(float((expected[n] - w).abs().sum()) for n, w in base.items())
    assert distance == pytest.approx(moved / sum(float(w.abs().sum()) for w in base.values()), rel=1e-5)


def test_a_member_alone_is_that_member(merger: Merger, family: dict[str, str]):
    model = models.load_model(family["base"])
    merger.fill(model, Recipe.of("linear", {"a": 0.0, "b": 1.0, "c": 0.0}))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights(family["b"])[name])


def test_blocks_and_modules_have_coefficients_of_their_own(merger: Merger, family: dict[str, str]):
    by_block = {m: {"0": float(m == "a"), "1": float(m == "b"), "rest": float(m == "c")} for m in "abc"}
    found = dict(merger.tensors(Recipe("linear", by_block, per="block")))
    whose = {"0": "a", "1": "b", "rest": "c"}
    for name, tensor in found.items():
        assert torch.equal(tensor, weights(family[whose[group(name, "block")]])[name])
    modules = {group(name, "module") for name in merger.names}
    by_module = {m: {each: float("q_proj" in each) if m == "a" else 0.5 for each in modules} for m in "abc"}
    found = dict(merger.tensors(Recipe("task_arithmetic", by_module, per="module", scale=2.0)))
    name = "model.layers.1.self_attn.q_proj.weight"
    base, a, b, c = (weights(family[n])[name] for n in ("base", "a", "b", "c"))
    assert torch.allclose(found[name], base + 2 * ((a - base) + 0.5 * (b - base) + 0.5 * (c - base)), atol=1e-6)


def test_what_chance_drops_is_decided_by_the_recipe_alone(merger: Merger):
    name = "model.layers.0.mlp.up_proj.weight"

    def made(weight: float, seed: int = 0) -> Tensor:
        numbers = {"a": weight, "b": 0.5, "c": 0.5}
        return merger.tensor(name, Recipe.of("dare_linear", numbers, dict.fromkeys("abc", 0.5), seed=seed))

    assert torch.equal(made(0.3), made(0.3))
    one, other, reseeded = (t == merger.base[name] for t in (made(0.3), made(0.3001), made(0.3, seed=1)))  # type: ignore[index]
    assert not torch.equal(one, other)  # no drop is that of another configuration
    assert not torch.equal(one, reseeded)
    kept = [merger.tensor(n, Recipe.of("dare_linear", {"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.5})) for n in (
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight")]  # fmt: skip
    assert not torch.equal(*(k == merger.base[n] for k, n in zip(kept, (  # type: ignore[index]
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"), strict=True)))  # fmt: skip


def test_a_saved_merge_loads_like_the_base(merger: Merger, family: dict[str, str], tmp_path: Path):
    recipe = Recipe.of("ties", {"a": 0.5, "b": 0.3, "c": 0.2}, dict.fromkeys("abc", 0.7))
    saved = merger.save(tmp_path / "merged", recipe)
    model, filled = models.load_model(str(saved)), models.load_model(family["base"])
    merger.fill(filled, recipe)
    for (name, one), (_, other) in zip(model.named_parameters(), filled.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert len(models.load_tokenizer(str(saved)).get_vocab()) == len(models.load_tokenizer(family["base"]).get_vocab())
    with pytest.raises(MergeError, match="exists already"):
        merger.save(saved, recipe)


def test_half_a_merge_leaves_nothing(merger: Merger, tmp_path: Path):
    with pytest.raises(MergeError, match=r"no weight for .* of c"):
        merger.save(tmp_path / "merged", Recipe.of("linear", {"a": 0.5, "b": 0.5}))
    assert not list(tmp_path.iterdir())


def test_shards_are_read_as_one_model(save: Callable[[str], Path], family: dict[str, str], tmp_path: Path):
    sharded = tmp_path / "sharded"
    models.load_model(family["a"]).save_pretrained(sharded, max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, split = (Merger({"a": place, "b": family["b"]}, family["base"]) for place in (family["a"], str(sharded)))
    recipe = Recipe.of("task_arithmetic", {"a": 0.4, "b": 0.4})
    for name, tensor in whole.tensors(recipe):
        assert torch.equal(tensor, split.tensor(name, recipe))


def test_networks_of_ones_own_are_merged_from_single_files(tmp_path: Path):
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    files = [str(tmp_path / f"{i}.safetensors") for i in range(3)]
    for network, file in zip(networks, files, strict=True):
        save_file(network.state_dict(), file)
    merger = Merger({"x": files[1], "y": files[2]}, files[0])
    merger.fill(networks[0], Recipe.of("linear", {"x": 1.0, "y": 1.0}))
    assert torch.allclose(networks[0][0].weight, (networks[1][0].weight + networks[2][0].weight) / 2)
    assert networks[0][1].num_batches_tracked == 0  # a whole number, equal in all


def test_products_are_the_slope_towards_each_member(merger: Merger, family: dict[str, str]):
    model = models.load_model(family["base"]).double()
    recipe = Recipe.of("linear", {"a": 0.2, "b": 0.3, "c": 0.5})
    ids = torch.randint(1, 320, (2, 16), generator=torch.Generator().manual_seed(0))
    merger.fill(model, recipe)

    def loss() -> Tensor:
        return cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    with gradients(model):
        loss().backward()  # type: ignore[no-untyped-call]
        products = merger.products(model, "block")
    assert sorted(products) == ["0", "1", "rest"]
    now, step = {"a": 0.2, "b": 0.3, "c": 0.5}, 0.01
    for member in "abc":
        losses = []
        for by in (step, -step):
            merger.fill(model, Recipe.of("linear", {m: w + by * (float(m == member) - w) for m, w in now.items()}))
            losses.append(float(loss()))
        slope = (losses[0] - losses[1]) / (2 * step)
        assert sum(each[member] for each in products.values()) == pytest.approx(slope, rel=0.01)
    assert not any(p.requires_grad for p in model.parameters())


def changed(folder: str, place: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    shutil.copytree(folder, place)
    tensors = weights(place)
    change(tensors)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return str(place)


def test_what_does_not_fit_is_refused_by_its_name(family: dict[str, str], tmp_path: Path, save: Callable[[str], Path]):
    norm, up = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"

    def refused(other: str, match: str) -> None:
        with pytest.raises(MergeError, match=match):
            Merger({"a": family["a"], "other": other}, family["base"])

    refused(changed(family["b"], tmp_path / "1", lambda t: t.pop(norm) is None), rf"the base has a tensor '{norm}'")
    refused(changed(family["b"], tmp_path / "2", lambda t: t.update(more=torch.ones(2))), r"other has a tensor 'more'")
    shape = rf"'{up}' has the shape \(127, 64\) in other and \(128, 64\) in the base"
    refused(changed(family["b"], tmp_path / "3", lambda t: t.update({up: t[up][1:].clone()})), shape)
    refused(str(save("llama-tied")), "the base has a tensor 'lm_head.weight' and other has none")
    refused(str(save("mistral")), "other is a MistralForCausalLM and the base a LlamaForCausalLM")
    other = Path(shutil.copytree(family["b"], tmp_path / "4"))
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["!"], words["model"]["vocab"]["A"] = (words["model"]["vocab"][t] for t in ("A", "!"))
    (other / "tokenizer.json").write_text(json.dumps(words))
    refused(str(other), r"The token '!' is \d+ in other and \d+ in the base \(2 such\)")
    with pytest.raises(MergeError, match="Got 1 model to merge"):
        Merger({"a": family["a"]}, family["base"])
    with pytest.raises(ModelNotFound, match="no file"):
        Merger({"a": str(tmp_path / "no.safetensors"), "b": family["b"]})
    cut = Path(shutil.copytree(family["b"], tmp_path / "5"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelNotFound, match="damaged"):
        Merger({"a": family["a"], "b": str(cut)})


def test_a_model_that_the_files_do_not_fill_is_left_alone(merger: Merger, save: Callable[[str], Path]):
    other = models.load_model(str(save("opt")))
    before = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(MergeError, match=r"The files have no 'model\.decoder"):
        merger.fill(other, Recipe.of("linear", dict.fromkeys("abc", 1.0)))
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_whole_numbers_that_differ_have_no_mean(tmp_path: Path):
    for i in range(2):
        save_file({"w": torch.ones(2), "n": torch.tensor([i])}, tmp_path / f"{i}.safetensors")
    with pytest.raises(MergeError, match="'n' holds whole numbers and differs between 0 and 1"):
        Merger({str(i): str(tmp_path / f"{i}.safetensors") for i in range(2)})


def test_whole_numbers_differ_from_others_even_where_the_base_has_no_such(tmp_path: Path):
    save_file({"n": torch.zeros(3)}, tmp_path / "base.safetensors")
    for i in range(2):
        save_file({"n": torch.arange(3) + 5 * i}, tmp_path / f"{i}.safetensors")
    with pytest.raises(MergeError, match="'n' holds whole numbers and differs between the base and 0"):
        Merger({str(i): str(tmp_path / f"{i}.safetensors") for i in range(2)}, str(tmp_path / "base.safetensors"))


@pytest.mark.parametrize(("was", "now"), [(b'"F32"', b'"F99"'), (b'"data_offsets":[0,', b'"data_offsets":[1,')])
def test_a_damaged_header_is_said_with_its_file(tmp_path: Path, was: bytes, now: bytes):
    for name in "ab":
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    file = tmp_path / "b.safetensors"
    file.write_bytes(file.read_bytes().replace(was, now))
    with pytest.raises(ModelNotFound, match=r"b\.safetensors is damaged.*Copy it again"):
        Merger({n: str(tmp_path / f"{n}.safetensors") for n in "ab"})


def test_recipes_refuse_what_is_no_number():
    with pytest.raises(MergeError, match="the weight nan of a"):
        Recipe.of("linear", {"a": float("nan"), "b": 1.0})
    with pytest.raises(MergeError, match="the scale inf"):
        Recipe.of("ties", {"a": 1.0, "b": 1.0}, scale=float("inf"))
    with pytest.raises(MergeError, match=r"density 1\.5 of a"):
        Recipe.of("ties", {"a": 1.0, "b": 1.0}, {"a": 1.5})
    with pytest.raises(MergeError, match="the weight '1' of b"):
        Recipe.of("ties", {"a": 1.0, "b": "1"})  # type: ignore[dict-item]
    with pytest.raises(MergeError, match="the density None of a"):
        Recipe.of("ties", {"a": 1.0, "b": 1.0}, {"a": None})  # type: ignore[dict-item]
    with pytest.raises(MergeError, match="one of model, block, module"):
        Recipe("ties", {}, per="layer")  # type: ignore[arg-type]


def test_equal_recipes_drop_the_same_whatever_type_their_numbers_have():
    given = {"a": 1, "b": np.float32(0.5)}
    recipe = Recipe.of("dare_ties", given, {"a": 0.5, "b": 0.5})
    given["a"] = 2  # too late
    same, probabilities = Recipe.of("dare_ties", {"a": 1.0, "b": 0.5}, {"a": 0.5, "b": 0.5}), torch.full((99,), 0.5)
    assert recipe == same
    assert torch.equal(recipe.draw("a", "w")()(probabilities), same.draw("a", "w")()(probabilities))


@pytest.mark.parametrize("recipe", [
    Recipe.of("ties", {"a": 1.0, "b": 1.0, "c": 1.0}), Recipe.of("ties", {"a": 1.0, "b": 1.0}, {"c": 0.5}),
])  # fmt: skip
def test_a_recipe_names_only_models_that_there_are(family: dict[str, str], recipe: Recipe):
    merger = Merger({n: family[n] for n in "ab"}, family["base"])
    with pytest.raises(MergeError, match="names a model 'c'; expected some of a, b"):
        merger.tensor(merger.names[0], recipe)


def test_numbers_of_eight_bits_are_refused(tmp_path: Path):
    for name in "ab":
        save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MergeError, match=r"'w' is torch\.float8_e4m3fn; merge models in bfloat16"):
        Merger({n: str(tmp_path / f"{n}.safetensors") for n in "ab"})


def test_whole_numbers_of_another_type_differ(tmp_path: Path):
    for name, type_ in (("a", torch.int64), ("b", torch.float32)):
        save_file({"w": torch.zeros(2, dtype=type_)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MergeError, match="'w' holds whole numbers and differs"):
        Merger({n: str(tmp_path / f"{n}.safetensors") for n in "ab"})


def test_a_place_that_cannot_be_written_is_told_before_anything_is_merged(
    merger: Merger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Merger, "tensor", lambda *_: pytest.fail("merged"))
    with pytest.raises(MergeError, match="cannot be written: File name too long"):
        merger.save(tmp_path / "new" / ("x" * 250), Recipe.of("linear", {"a": 1.0, "b": 1.0, "c": 1.0}))
    assert list(tmp_path.iterdir()) == []
