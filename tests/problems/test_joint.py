"""Joint problems: what the parts say of a candidate is true of the one that all of them made."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moopt
from moopt.backend import models
from moopt.backend.kv import Pair, load_preset
from moopt.backend.merging import Merger
from moopt.backend.merging.tasks import TextLoss
from moopt.backend.metrics import CallableMetric
from moopt.errors import ExportError, MooptError, ProblemError
from moopt.problem import Problem
from moopt.testing.problems import ProblemSuite
from moopt_problems import BitAllocation, Joint, KVCachePrecision, ModelMerge
from moopt_problems.kv_cards import pairs_card
from moopt_problems.merge_cards import weights_card
from moopt_problems.synthetic import BitToy
from tests.backend.merging.conftest import tuned

TEXT = textwrap.__file__
SMALL: dict[str, Any] = {"text": TEXT, "tokens": 256, "context": 128, "held_out": 128, "validation": 128}


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models tuned from the tiny one at random, and that."""
    place = tmp_path_factory.mktemp("tuned")
    return {"base": str(tiny)} | {n: str(tuned(tiny, place / n, seed, 0.05)) for seed, n in enumerate("ab")}


@pytest.fixture
def parts(folders: dict[str, str]) -> dict[str, Problem]:
    text = TextLoss("text", TEXT, tokens=128, context=64)
    return {
        "kv": KVCachePrecision(
            folders["base"], groups="layers", text=TEXT, tokens=256, context=128, profile_tokens=256
        ),
        "merge": ModelMerge({n: folders[n] for n in "ab"}, [text], base=folders["base"], distance=True),
        "bits": BitAllocation(
            folders["base"],
            bits=(2, 4, 8),
            group_size=32,
            text=TEXT,
            tokens=256,
            context=128,
            sensitivity_tokens=256,
            validation=0,
            held_out=0,
        ),
    }


@pytest.fixture
def joint(parts: dict[str, Problem], folders: dict[str, str]) -> Joint:
    return Joint(parts, teacher=folders["base"], **SMALL)


class TestContract(ProblemSuite):
    draws = 2

    @pytest.fixture
    def problem(self, joint: Joint) -> Problem:
        return joint


def test_it_has_all_decisions_and_every_objective_once(joint: Joint):
    assert list(joint.parts) == ["merge", "bits", "kv"]
    assert joint.space.names[:2] == ("merge/weight.a", "merge/weight.b")
    assert {name.split("/")[0] for name in joint.space.names} == {"merge", "bits", "kv"}
    assert [o.name for o in joint.objectives] == ["text", "kl", "distance", "size_mb", "kv_bytes"]
    config = joint.space.sample(np.random.default_rng(0))
    sizes = joint.known(config)
    assert sizes["size_mb"] == joint.parts["bits"].known(joint.of_part("bits", config))["size_mb"]
    assert sizes["kv_bytes"] == joint.parts["kv"].known(joint.of_part("kv", config))["kv_bytes"]


def test_each_part_alone_measures_what_it_measures_by_itself(joint: Joint, folders: dict[str, str]):
    plain = joint.baselines()["plain"]
    base = {**plain, "merge/weight.a": 0.0, "merge/weight.b": 0.0}
    quantized = BitAllocation(
        folders["base"], bits=(2, 4, 8), group_size=32, text=TEXT, tokens=256, context=128, held_out=0, validation=0
    )
    joint.parts["kv"].bits  # noqa: B018 - widths up to 8
    alone = {
        n.removeprefix("bits/"): 4 if n != "bits/embedding" else v for n, v in base.items() if n.startswith("bits/")
    }
    wide = Joint(
        {"merge": joint.parts["merge"], "bits": joint.parts["bits"]}, teacher=folders["base"], **SMALL
    )  # without packed keys and values
    config = {n: v for n, v in base.items() if not n.startswith("kv/")} | {f"bits/{n}": v for n, v in alone.items()}
    found = wide.evaluate(config, wide.fidelity).values["kl"]
    assert found == pytest.approx(quantized.evaluate(alone, quantized.fidelity).values["kl"], rel=0.02)


def test_a_candidate_is_merged_then_quantized_then_packed(joint: Joint, folders: dict[str, str]):
    config = joint.space.sample(np.random.default_rng(3))
    found = joint.evaluate(config, joint.fidelity).values
    shipped = joint.shipped(config)
    assert shipped.recipe is not None
    assert shipped.pairs is not None
    assert all(isinstance(pair, Pair) for pair in shipped.pairs)
    model = models.load_model(folders["base"])
    distance = Merger({n: folders[n] for n in "ab"}, folders["base"]).fill(model, shipped.recipe)
    assert found["distance"] == pytest.approx(distance)
    candidate = joint._ready._merged[1]  # type: ignore[index]
    for name, option in shipped.widths.items():
        merged = model.get_submodule(name).weight
        error = (candidate.weight(name, option).float() - merged).norm() / merged.norm()
        assert float(error) < {2: 0.5, 4: 0.1, 8: 0.01}[int(option)]
    assert found["kl"] > 0


def test_keys_and_values_are_packed_for_tasks_too(joint: Joint):
    config = joint.baselines()["plain"]
    low = {**config, **{n: 2 for n in joint.space.names if n.startswith("kv/")}}
    found = [joint.evaluate(each, joint.fidelity).values for each in (config, low)]
    assert found[0]["text"] != found[1]["text"]
    assert found[0]["kl"] < found[1]["kl"]
    assert found[0]["distance"] == found[1]["distance"]


def test_a_merge_is_done_once_for_all_its_widths(joint: Joint):
    config = joint.baselines()["plain"]
    joint.evaluate(config, joint.fidelity)
    before = joint._ready._merged[1]  # type: ignore[index]
    joint.evaluate({**config, "bits/0.down": 2}, joint.fidelity)
    assert joint._ready._merged[1] is before  # type: ignore[index]
    joint.evaluate({**config, "merge/weight.a": 0.9}, joint.fidelity)
    assert joint._ready._merged[1] is not before  # type: ignore[index]


def test_baselines_change_one_part_at_a_time(joint: Joint, parts: dict[str, Problem]):
    first = joint.baselines()
    assert {"plain", "merge: only a"} <= set(first)
    assert {label.split(":")[0] for label in first} == {"plain", "merge"}
    found = {**first["plain"], "merge/weight.a": 0.7}
    later = joint.later_baselines({**found, "bits/0.down": 2})
    assert {"bits: uniform-2", "kv: uniform-KV2"} <= set(later)
    together = Joint({name: parts[name] for name in ("bits", "kv")}, **SMALL)
    assert set(together.baselines()) == {"plain", *later}
    assert not together.first
    assert not together.later_baselines(together.baselines()["plain"])
    for every, plain in ((first, first["plain"]), (later, found)):
        for label, config in every.items():
            differing = {n.split("/")[0] for n in joint.space.names if config[n] != plain[n]}
            assert differing <= {label.split(":")[0]}


def test_tables_of_the_parts_are_one(joint: Joint, parts: dict[str, Any]):
    assert joint.sensitivity is not None
    asked = joint.sensitivity
    table, costs = joint.sensitivities(str(asked.batch), asked.tokens), joint.costs()
    bits, kv = len(parts["bits"].space), len(parts["kv"].space)
    assert table.shape == costs.shape == (bits + kv, 3)
    part = parts["bits"].sensitivity
    np.testing.assert_allclose(table[:bits, :3], parts["bits"].sensitivities(part.batch, part.tokens), rtol=1e-5)
    np.testing.assert_array_equal(costs[bits:], parts["kv"].costs())
    with pytest.raises(ProblemError, match="expected 'parts'"):
        joint.sensitivities("fisher", 256)


def test_each_part_has_costs_of_its_own(joint: Joint):
    resources = joint.resources()
    assert list(resources) == ["bits", "kv"]
    np.testing.assert_array_equal(sum(np.maximum(each, 0) for each in resources.values()), np.maximum(joint.costs(), 0))
    assert all((each < 0).tolist() == (joint.costs() < 0).tolist() for each in resources.values())


def test_a_metric_for_finalists_is_refused(folders: dict[str, str], parts: dict[str, Problem]):
    late = CallableMetric("late", len, when="finalists")
    bits = BitAllocation(
        folders["base"], bits=(2, 4), group_size=32, text=TEXT, tokens=256, context=128, metrics=[late]
    )
    with pytest.raises(ProblemError, match="The part 'bits' has the metric 'late' for finalists"):
        Joint({"bits": bits, "kv": parts["kv"]}, **SMALL)


def test_a_choice_of_the_method_has_a_row_of_zeros(parts: dict[str, Problem], folders: dict[str, str]):
    merge = ModelMerge(
        {n: folders[n] for n in "ab"}, [TextLoss("text", TEXT, tokens=128, context=64)], base=folders["base"],
        method=("linear", "ties"),
    )  # fmt: skip
    joint = Joint({"merge": merge, "bits": parts["bits"]}, teacher=folders["base"], **SMALL)
    assert int(joint.space.discrete.sum()) == len(joint.costs())
    assert joint.costs()[0].tolist() == [0, 0, -1]  # linear or ties, as many bytes


def test_a_study_settles_the_merge_and_opens_with_knapsacks_over_all_bytes(joint: Joint):
    study = moopt.Study("joint", joint, "random", seed=0)
    study.run(44)
    trials = study.history.trials
    opened = [trial for trial in trials if trial.label is not None and "knapsack" in trial.label]
    assert len(opened) > 4
    assert {label.split(" at ")[0].split(" between ")[0] for label in (str(trial.label) for trial in opened)} == {
        "knapsack", "knapsack of bits", "knapsack of kv"
    }  # fmt: skip
    plain = joint.baselines()["plain"]
    weights = [name for name in joint.space.names if name.startswith("merge/")]
    assert list(joint.first) == weights
    settling = trials[: 6 * len(weights)]
    assert all(trial.config[name] == plain[name] for trial in settling for name in plain.keys() - set(weights))
    settled = [tuple(trial.config[name] for name in weights) for trial in opened]
    assert len(set(settled)) == 1
    assert settled[0] in {tuple(trial.config[name] for name in weights) for trial in settling}
    assert all(trial.values["kl"] >= 0 for trial in opened)


def test_the_teacher_runs_once_for_a_text(joint: Joint):
    config = joint.baselines()["plain"]
    found = [joint.evaluate(each, joint.fidelity) for each in (config, {**config, "merge/weight.a": 0.9}, config)]
    first, second, third = (each.attributes["forward_tokens"] for each in found)
    assert first == second + joint.fidelity.tokens
    assert second == third
    assert found[0].values == found[2].values


def test_moves_stay_in_the_space_and_reach_every_part(joint: Joint):
    rng = np.random.default_rng(0)
    config = joint.space.sample(rng)
    reached = set()
    for _ in range(40):
        moved = joint.moves(config, rng)
        assert joint.space.validate(moved) == moved
        reached |= {n.split("/")[0] for n in joint.space.names if moved[n] != config[n]}
    assert reached == {"merge", "bits", "kv"}


def test_without_a_merge_the_model_is_its_own_teacher(parts: dict[str, Problem], folders: dict[str, str]):
    joint = Joint({"bits": parts["bits"], "kv": parts["kv"]}, **SMALL)
    assert joint.teacher == folders["base"]
    found = joint.evaluate(joint.baselines()["plain"], joint.fidelity)
    assert 0 < found.values["kl"] < 0.5
    assert [o.name for o in joint.objectives] == ["kl", "size_mb", "kv_bytes"]


def test_metrics_of_the_parts_are_measured_on_the_candidate(folders: dict[str, str]):
    bits = BitAllocation(
        folders["base"], bits=(2, 8), group_size=32, text=TEXT, metrics=[CallableMetric("first", first)]
    )
    kv = KVCachePrecision(folders["base"], groups="layers", text=TEXT, tokens=256, context=128)
    joint = Joint({"bits": bits, "kv": kv}, **SMALL)
    plain = joint.baselines()["plain"]
    found = [joint.evaluate({**plain, "bits/0.down": b}, joint.fidelity).values["first"] for b in (2, 8)]
    assert found[0] != found[1]


def first(model: Any) -> float:
    return float(model(input_ids=torch.arange(1, 33)[None]).logits.float().mean())


def test_a_study_searches_all_of_it(joint: Joint):
    study = moopt.Study("joint", joint, "nsga2", seed=0)
    study.run(14)
    assert len(study.front()) >= 2
    assert all(trial.failure is None for trial in study.history.trials)


def test_a_joint_candidate_is_exported_as_it_ships(joint: Joint, tmp_path: Path):
    study = moopt.Study("joint", joint, "random", seed=0).run(3)
    found = study.export(2, "moopt", tmp_path / "weights")
    config = study.history.trials[2].config
    bits = joint.parts["bits"]
    assert found.manifest["size"] == bits.bytes(joint.of_part("bits", config))  # type: ignore[attr-defined]
    shipment = joint.shipment(config)
    model = models.load_model(joint.model)
    Merger({n: joint.members[n] for n in "ab"}, joint.base).fill(model, joint.shipped(config).recipe)  # type: ignore[arg-type]
    name = next(n for n, width in shipment.widths.items() if width == 8 and "proj" in n)
    values = shipment.quantized(name, 8).dequantize()
    assert float((values - model.get_submodule(name).weight).abs().max()) < 0.02
    preset = load_preset(study.export(2, "kv-preset", tmp_path / "pairs").path / "kv-preset.json")
    assert list(preset.pairs) == joint.pairs(config)


def test_without_a_part_of_it_nothing_is_exported(parts: dict[str, Problem], folders: dict[str, str], tmp_path: Path):
    wide = Joint({"merge": parts["merge"], "bits": parts["bits"]}, teacher=folders["base"], **SMALL)
    study = moopt.Study("wide", wide, "random").run(1)
    with pytest.raises(ExportError, match="Joint does not decide that"):
        study.export(0, "kv-preset", tmp_path / "out")
    cached = Joint({"merge": parts["merge"], "kv": parts["kv"]}, teacher=folders["base"], **SMALL)
    with pytest.raises(ExportError, match="No part decides widths"):
        moopt.Study("cached", cached, "random").run(1).export(0, "moopt", tmp_path / "out")


@pytest.mark.parametrize("name", ["size_mb", "kl", "kv_bytes", "perplexity"])
def test_names_that_two_parts_use_for_other_things_are_refused(
    parts: dict[str, Problem], folders: dict[str, str], name: str
):
    task = TextLoss(name, TEXT, tokens=128, context=64)
    merge = ModelMerge({n: folders[n] for n in "ab"}, [task], base=folders["base"])
    with pytest.raises(ProblemError, match=r"rename it|another name"):
        Joint({**parts, "merge": merge}, teacher=folders["base"], **SMALL)
    with pytest.raises(ProblemError, match="A task is called 'distance'"):
        ModelMerge({n: folders[n] for n in "ab"}, [TextLoss("distance", TEXT)], base=folders["base"])


def test_a_teacher_of_other_tokens_is_refused(parts: dict[str, Problem], folders: dict[str, str], tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(folders["base"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    for teacher, match in ((str(other), "has 300 tokens and"), ("", "Got teacher=''")):
        with pytest.raises(ProblemError, match=match):
            Joint(parts, teacher=teacher, **SMALL)


def test_a_merge_at_a_fixed_width_is_searched(parts: dict[str, Problem], folders: dict[str, str]):
    fixed = BitAllocation(
        folders["base"], bits=(4,), embedding=4, tie="block", group_size=32, objectives=["size_mb"], text=TEXT,
        sensitivities=None,
    )  # fmt: skip
    joint = Joint({"merge": parts["merge"], "bits": fixed}, teacher=folders["base"], **SMALL)
    study = moopt.Study("fixed", joint, "qnehvi", seed=1).run(24)
    assert all(trial.failure is None for trial in study.history.trials)


def test_each_part_keeps_its_pictures(joint: Joint):
    study = moopt.Study("joint", joint, "random", seed=0).run(8)
    pairs, weights = pairs_card(study.history), weights_card(study.history)
    assert pairs is not None
    assert weights is not None
    front = study.history.front()
    assert weights.table["a"].tolist() == [trial.config["merge/weight.a"] for trial in front]
    kv = joint.parts["kv"]
    for column, trial in zip(pairs.table.columns[1:], front, strict=True):
        assert [Pair.of(pair) for pair in pairs.table[column]] == kv.pairs(joint.of_part("kv", trial.config))  # type: ignore[attr-defined]


def test_the_teacher_sees_another_head(folders: dict[str, str], joint: Joint):
    """The reference is in the candidate's head, which a merge changes; against logits of both it must agree."""
    config = {**joint.baselines()["plain"], **{n: 8 for n in joint.space.names if n.startswith("kv/")}}
    wide = Joint({"merge": joint.parts["merge"], "bits": joint.parts["bits"]}, teacher=folders["a"], **SMALL)
    plain = {n: v for n, v in config.items() if not n.startswith("kv/")}
    found = wide.evaluate(plain, wide.fidelity).values["kl"]
    candidate, teacher = wide._ready._merged[1].model, models.load_model(folders["a"])  # type: ignore[index]
    ids = wide._ready._ids(wide.fidelity)
    with torch.inference_mode():
        q = torch.log_softmax(candidate(input_ids=ids).logits.float(), -1)
        p = torch.log_softmax(teacher(input_ids=ids).logits.float(), -1)
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=0.05)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda parts, folders: {"kv": parts["kv"]}, "expected two problems or more"),
        (lambda parts, folders: [parts["kv"]], "expected two problems or more"),
        (lambda parts, folders: {**parts, "toy": BitToy(4)}, "The part 'toy' is a BitToy"),
        (lambda parts, folders: {"one": parts["kv"], "two": parts["kv"]}, "two parts of one kind"),
        (
            lambda parts, folders: {**parts, "bits": BitAllocation(folders["a"], bits=(4, 8), group_size=32)},
            "expected one model",
        ),
        (
            lambda parts, folders: {
                **parts, "bits": BitAllocation(folders["base"], bits=(4, 8), group_size=32, quantizer="gptq")
            },
            "quantizes by gptq, which looks at",
        ),
        (
            lambda parts, folders: {
                **parts,
                "bits": BitAllocation(folders["base"], bits=(4, 8), group_size=32, objectives=("kl", "decode_ms")),
            },
            "has the objective decode_ms",
        ),
        (
            lambda parts, folders: {**parts, "bits": BitAllocation(folders["base"], target="vllm", group_size=32)},
            "vllm .* holds keys and values of all layers as they are or in FP8",
        ),
    ],
    ids=["one", "list", "toy", "twice", "models", "calibrated", "timed", "server"],
)  # fmt: skip
def test_what_cannot_be_one_problem_is_refused(
    parts: dict[str, Problem], folders: dict[str, str], change: Any, match: str
):
    with pytest.raises(ProblemError, match=match):
        Joint(change(parts, folders), teacher=folders["base"], **SMALL)


def test_a_merge_needs_a_teacher_for_kl(parts: dict[str, Problem]):
    with pytest.raises(ProblemError, match="give teacher="):
        Joint(parts, **SMALL)
    with pytest.raises(MooptError, match="nobody"):
        Joint(parts, teacher="nobody", **SMALL).fingerprint()
