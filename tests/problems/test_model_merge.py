"""Merging as a problem: what is decided, what is measured, what is refused; on networks of a single layer."""

from __future__ import annotations

import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import moopt
from moopt.backend.merging.tasks import Classification, Function, LMEval, Score, TextLoss
from moopt.backend.metrics import CallableMetric
from moopt.errors import CapabilityError, MergeError, MetricError, ModelNotFound, ProblemError, SpaceError
from moopt.problem import capabilities
from moopt.testing.problems import ProblemSuite
from moopt_problems import ModelMerge
from moopt_problems.merge_cards import TITLE, weights_card
from moopt_problems.synthetic import BitToy

SPLITS = {"search": 40, "validation": 30, "held-out": 50}


LATE = CallableMetric("late", lambda model: 0.0, when="finalists")


class Nameless:
    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        return Score(0.0)


def network() -> nn.Module:
    return nn.Linear(6, 3)


def points(task: int, only: str = "") -> dict[str, tuple[Tensor, Tensor]]:
    """Points of three classes, each task's turned otherwise."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 6, generator=generator).roll(task, 0)
    found = {}
    for split, count in SPLITS.items():
        labels = torch.randint(0, 3, (count,), generator=generator)
        found[split] = centres[labels] + torch.randn(count, 6, generator=generator), labels
    return {split: each for split, each in found.items() if only in ("", split)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base of zeros and three models, the first two of which solve a task each."""
    place = tmp_path_factory.mktemp("networks")
    centres = [points(task)["search"] for task in (0, 1)]
    found = {"base": torch.zeros(3, 6)}
    for name, (inputs, labels) in zip("ab", centres, strict=True):
        found[name] = torch.stack([inputs[labels == c].mean(0) for c in range(3)])
    found["c"] = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    for name, weight in found.items():
        save_file({"weight": weight, "bias": -(weight**2).sum(1) / 2}, place / f"{name}.safetensors")
    return {name: str(place / f"{name}.safetensors") for name in found}


TASKS = [Classification(f"task-{i}", partial(points, i)) for i in (0, 1)]


@pytest.fixture
def make(models: dict[str, str]) -> Any:
    given = {n: models[n] for n in "abc"}
    return partial(ModelMerge, given, TASKS, base=models["base"], architecture=network)


VARIETIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "simplex": {"method": "linear", "weights": "simplex", "per": "module"},
    "methods": {"method": ("ties", "dare_linear", "linear"), "scale": (0.5, 2.0), "per": "module"},
    "della": {"method": "della", "densities": (0.2, 0.9), "weights": (-0.5, 1.5)},
}


@pytest.mark.parametrize("variety", VARIETIES)
class TestContract(ProblemSuite):
    @pytest.fixture
    def problem(self, make: Any, variety: str) -> moopt.Problem:
        return make(**VARIETIES[variety])


def test_members_do_what_they_were_made_for(make: Any):
    problem = make()
    found = {name: problem.evaluate(config, problem.fidelity) for name, config in problem.baselines().items()}
    assert list(found) == ["only a", "only b", "only c", "mean", "base"]
    assert found["only a"].values["task-0"] > 0.9
    assert found["only b"].values["task-1"] > 0.9
    assert found["only a"].values["task-1"] < 0.6
    assert len(found["mean"].samples["task-0"]) == 40
    assert found["mean"].values["task-0"] == pytest.approx(np.mean(found["mean"].samples["task-0"]))
    assert found["base"].attributes["distance"] != found["base"].attributes["distance"]  # of zeros there is none
    held = problem.evaluate(problem.baselines()["only a"], problem.measurements["held-out"])
    assert len(held.samples["task-0"]) == 50


def test_a_configuration_is_a_recipe(make: Any):
    problem = make(method=("ties", "linear"), scale=(0.5, 2.0), densities=(0.2, 0.9))
    assert problem.space.names == (
        "method", "weight.a", "weight.b", "weight.c", "density.a", "density.b", "density.c", "scale",
    )  # fmt: skip
    config = problem.space.sample(np.random.default_rng(0))
    recipe = problem.recipe(config)
    assert recipe.method == config["method"]
    assert recipe.scale == config["scale"]
    assert {m: recipe.weight(m, "weight") for m in "abc"} == {m: config[f"weight.{m}"] for m in "abc"}
    assert {m: recipe.density(m, "weight") for m in "abc"} == {m: config[f"density.{m}"] for m in "abc"}


def test_weights_on_a_simplex_sum_to_one(make: Any):
    problem = make(method="linear", weights="simplex")
    assert problem.space.names == ("weight.a", "weight.b")
    rng = np.random.default_rng(0)
    for _ in range(5):
        weights = problem.recipe(problem.space.sample(rng)).weights
        assert sum(each[""] for each in weights.values()) == pytest.approx(1)
    assert "base" not in problem.baselines()
    mean = problem.recipe(problem.baselines()["mean"]).weights
    assert all(each[""] == pytest.approx(1 / 3) for each in mean.values())


def test_the_gradient_is_the_slope_towards_each_model(make: Any):
    losses = [Classification(f"task-{i}", partial(points, i), "loss") for i in (0, 1)]
    problem = make(method="linear", weights="simplex", per="module", gradient_examples=40)
    problem.tasks = tuple(losses)
    problem.setup(moopt.Resources())
    now = {"a": 0.5, "b": 0.3, "c": 0.2}

    def at(weights: dict[str, float]) -> moopt.Config:
        config = problem.configuration(dict.fromkeys(problem.groups, weights))
        assert config is not None
        return config

    def loss(weights: dict[str, float]) -> float:
        return float(np.mean(list(problem.evaluate(at(weights), problem.fidelity).values.values())))

    values, linear, curvature = problem.gradient(at(now), moopt.Fidelity(40, 0))
    assert values["loss"] == pytest.approx(loss(now), rel=1e-5)
    assert linear.shape == curvature.shape == (len(problem.groups), 3)
    assert linear @ np.array(list(now.values())) == pytest.approx(0, abs=1e-5)  # it lies in the models' hull
    for place, model in enumerate(now):
        step = 0.01
        moved = {m: w + step * (float(m == model) - w) for m, w in now.items()}
        back = {m: w - step * (float(m == model) - w) for m, w in now.items()}
        assert linear[:, place].sum() == pytest.approx((loss(moved) - loss(back)) / (2 * step), rel=0.02)


@pytest.mark.parametrize("arguments", [{}, {"method": "linear"}, {"method": "ties", "weights": "simplex"}])
def test_merges_that_leave_the_hull_have_no_gradient(make: Any, arguments: dict[str, Any]):
    problem = make(**arguments)
    assert "gradient" not in capabilities(problem)
    with pytest.raises(CapabilityError, match=r"lacks: .*gradient"):
        moopt.Study("x", problem, "sequential-knapsack")


def test_a_merge_is_saved_as_it_was_measured(make: Any, tmp_path: Path):
    problem = make(method="dare_ties")
    config = problem.space.sample(np.random.default_rng(1))
    saved = load_file(problem.save(config, tmp_path / "merged") / "model.safetensors")
    problem.evaluate(config, problem.fidelity)
    assert torch.equal(saved["weight"], problem._ready.model.weight)


def test_a_study_finds_merges_that_no_member_is(make: Any):
    study = moopt.Study("merge", make(method="linear", weights="simplex"), "random", seed=0)
    front = study.run(25).front()
    assert len(front) >= 2
    assert {"task-0", "task-1"} <= set(front.columns)


def test_it_goes_to_other_processes_without_its_models(make: Any):
    problem = make()
    problem.setup(moopt.Resources())
    again = pickle.loads(pickle.dumps(problem))
    config = problem.baselines()["mean"]
    assert again.evaluate(config, again.fidelity).values == problem.evaluate(config, problem.fidelity).values
    assert again.fingerprint() == problem.fingerprint()


def test_any_metric_is_a_task(models: dict[str, str]):
    metric = CallableMetric("norm", weight_norm)
    problem = ModelMerge([models["a"], models["b"]], [metric], method="slerp", architecture=network)
    assert isinstance(problem.tasks[0], Function)
    assert problem.space.names == ("weight.a", "weight.b")
    norms = [float(load_file(models[n])["weight"].norm()) for n in "ab"]
    found = [problem.evaluate(problem.baselines()[f"only {n}"], problem.fidelity).values["norm"] for n in "ab"]
    assert found == pytest.approx(norms, rel=1e-5)


def weight_norm(model: nn.Module) -> float:
    return float(model.weight.norm())  # type: ignore[union-attr,operator]


def test_the_harness_is_asked_for_where_it_is_missing():
    with pytest.raises(MetricError, match="pip install lm-eval"):
        LMEval("arc", "arc_easy")


class Failing:
    name, direction, unit = "bad", "min", ""

    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        raise MetricError("no luck")

    def describe(self) -> dict[str, Any]:
        return {"name": "bad"}


def test_a_task_that_fails_fails_the_trial(models: dict[str, str]):
    problem = ModelMerge([models["a"], models["b"]], [Failing()], method="linear", architecture=network)
    study = moopt.Study("bad", problem, "random", seed=0)
    study.run(2)
    assert all("no luck" in str(trial.failure) for trial in study.history.trials if trial.failure)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"method": "tise"}, MergeError, "no method of merging 'tise'"),
        ({"method": ()}, ProblemError, r"Got method=\(\)"),
        ({"method": "slerp"}, ProblemError, "slerp merges 2 models; got 3"),
        ({"base": None}, ProblemError, "task_arithmetic merges differences from a base"),
        ({"per": "layer"}, MergeError, "one of model, block, module"),
        ({"weights": (1.0, 0.0)}, ProblemError, r"Got weights=\(1\.0, 0\.0\)"),
        ({"weights": "simpleks"}, ProblemError, "or 'simplex'"),
        ({"method": "ties", "densities": (0.5, 1.5)}, ProblemError, "within 0 and 1"),
        ({"method": "ties", "densities": 1.5}, ProblemError, "within 0 and 1"),
        ({"scale": "big"}, ProblemError, "Got scale='big'"),
        ({"tasks": []}, ProblemError, "Got no tasks"),
        ({"tasks": [3]}, MetricError, "Got the task 3"),
        ({"tasks": [TASKS[0], TASKS[0]]}, ProblemError, "Two objectives are called 'task-0'"),
        ({"method": "linear", "base": None, "distance": True}, ProblemError, "no base to be distant from"),
        ({"models": "a"}, ProblemError, "expected folders in a list"),
        ({"models": {"a": 3}}, ProblemError, "Got a model 'a': 3"),
        ({"models": ["x/a", "y/a"]}, ProblemError, "the same last part"),
        ({"base": 3}, ProblemError, "Got base=3; expected the folder or the id"),
        ({"architecture": "vit"}, ProblemError, "Got architecture='vit'; expected a function"),
        ({"scale": True}, ProblemError, "Got scale=True .*; expected numbers"),
        ({"seed": -1}, ProblemError, "Got seed=-1; expected a whole number from 0"),
        ({"gradient_examples": 0}, ProblemError, "Got gradient_examples=0; expected a whole number above 0"),
        ({"held_out": 64}, ProblemError, "Got held_out=64; expected True or False"),
        ({"method": "linear", "scale": (0.5, 2.0)}, ProblemError, "linear has no difference to scale"),
        ({"method": "linear", "densities": (0.5, 1.0)}, ProblemError, "linear keeps all of every model"),
        ({"method": [["ties"]]}, ProblemError, r"Got method=\[\['ties'\]\]"),
        ({"models": [1, 2]}, ProblemError, "Got a model 1; expected its folder"),
        ({"architecture": None}, ProblemError, r"Got the file .*a\.safetensors and no network"),
        ({"tasks": [LATE]}, MetricError, "The metric 'late' is for finalists"),
        ({"tasks": [Nameless()]}, MetricError, "has no name and no direction and no unit and no describe"),
    ],
)
def test_what_does_not_fit_is_refused(
    models: dict[str, str], arguments: dict[str, Any], error: type[Exception], match: str
):
    given = {"models": {n: models[n] for n in "abc"}, "tasks": TASKS, "base": models["base"], "architecture": network}
    with pytest.raises(error, match=match):
        ModelMerge(**{**given, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"architecture": lambda: None}, MergeError, "architecture gave None; expected a torch.nn.Module"),
        ({"architecture": lambda: 1 / 0}, MergeError, "architecture raised ZeroDivisionError"),
        ({"architecture": lambda: nn.Linear(6, 4)}, MergeError, r"has the shape \(3, 6\) in the files, \(4, 6\)"),
        ({"tasks": [TextLoss("text", "prose")]}, MergeError, "The task 'text' reads text, and the models"),
        ({"tasks": [Classification("no", {"search": 1})]}, MetricError, "'no' has data=.*expected a function"),
        ({"tasks": [Classification("no", dict)]}, MergeError, "no 'search' data; it has . Give some.$"),
        ({"tasks": [Classification("no", lambda: {"search": (1, 2)})]}, MetricError, "and as many labels"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_searched(
    models: dict[str, str], arguments: dict[str, Any], error: type[Exception], match: str
):
    given = {"models": {n: models[n] for n in "abc"}, "tasks": TASKS, "base": models["base"], "architecture": network}
    with pytest.raises(error, match=match):
        ModelMerge(**{**given, **arguments}).setup(moopt.Resources())


@pytest.mark.parametrize(("tokens", "context"), [(0, 1), (-5, 512), ("x", 512), (2048, 1), (64, 128), (True, 2)])
def test_a_text_that_says_nothing_is_refused(tokens: Any, context: int):
    with pytest.raises(MetricError, match=r"expected whole numbers, a context of two"):
        TextLoss("text", "prose", tokens, context)


def test_a_number_is_a_score_and_anything_else_is_refused(models: dict[str, str]):
    for scored, said in ((0.5, ""), (torch.ones(2), "scored tensor.*expected a Score, or a number")):
        task = Failing()
        task.score = lambda *a, scored=scored: scored  # type: ignore[method-assign]
        problem = ModelMerge([models["a"], models["b"]], [task], method="linear", architecture=network)
        trial = moopt.Study("s", problem, "random").run(1).history.trials[0]
        assert re.search(said, str(trial.failure))
        assert (trial.failure is None) is (said == "")


def test_numbers_that_are_none_are_refused_by_tensor_and_model(models: dict[str, str], tmp_path: Path):
    tensors = load_file(models["b"])
    tensors["weight"][1, 2] = float("nan")
    save_file(tensors, tmp_path / "b.safetensors")
    given = {"a": models["a"], "b": str(tmp_path / "b.safetensors")}
    problem = ModelMerge(given, TASKS, base=models["base"], architecture=network)
    problem.setup(moopt.Resources())
    config = problem.baselines()["only a"]
    for act in (lambda: problem.evaluate(config, problem.fidelity), lambda: problem.save(config, tmp_path / "merged")):
        with pytest.raises(MergeError, match="'weight' has numbers in b that are not finite"):
            act()
    assert not (tmp_path / "merged").exists()


def test_folders_are_paths_too_and_a_trial_is_no_configuration(models: dict[str, str], tmp_path: Path):
    paths = {name: Path(place) for name, place in models.items()}
    plainly = ModelMerge([models["a"], models["b"]], TASKS, base=models["base"], architecture=network)
    problem = ModelMerge(
        [paths["a"], paths["b"]], TASKS, base=paths["base"], weights=np.array([0.0, 1.0]), architecture=network
    )  # type: ignore[arg-type]
    assert problem.fingerprint() == plainly.fingerprint()
    study = moopt.Study("s", problem, "random").run(2)
    with pytest.raises(SpaceError, match=r"expected its \.config"):
        problem.save(study.history.trials[0], tmp_path / "merged")
    with pytest.raises(MergeError, match="Got the path 3; expected a folder"):
        problem.save(study.history.trials[0].config, 3)


@pytest.mark.parametrize("names", [("7b", "smol-1.7b", "c"), ("v1", "v1.2", "c")])
@pytest.mark.parametrize("weights", ["simplex", (0.0, 1.0)])
def test_models_are_told_apart_whatever_they_are_called(models: dict[str, str], names: Any, weights: Any):
    given = dict(zip(names, (models[n] for n in "abc"), strict=True))
    problem = ModelMerge(given, TASKS, method="linear", weights=weights, per="module", architecture=network)
    study = moopt.Study("merge", problem, "random").run(trials=6)
    card = weights_card(study.history)
    assert card is not None
    for row, trial in zip(card.table.to_dict("records"), study.history.front(), strict=True):
        wanted = {n: np.mean(list(problem.recipe(trial.config).weights[n].values())) for n in names}
        assert {name: row[name] for name in names} == pytest.approx(wanted)


def test_a_gradient_counts_all_its_tokens(make: Any, models: dict[str, str]):
    problem = make(method="linear", weights="simplex")
    assert problem.gradient_tokens == 100
    assert problem.forward_tokens("gradient", moopt.Fidelity(100, 0)) == 3 * 100 * 2


def test_what_is_missing_is_said_before_anything_is_searched(make: Any, models: dict[str, str]):
    short = [Classification("short", partial(points, 0, only="search"))]
    with pytest.raises(MergeError, match="no 'validation' data; it has search"):
        ModelMerge([models["a"], models["b"]], short, method="linear", architecture=network).setup(moopt.Resources())
    with pytest.raises(ModelNotFound, match=r"no file nowhere\.safetensors"):
        ModelMerge({"a": models["a"], "b": "nowhere.safetensors"}, TASKS, method="linear", architecture=network)


def test_models_that_do_not_fit_are_refused_where_they_are_named(models: dict[str, str], tmp_path: Path):
    tensors = load_file(models["b"])
    name = next(iter(tensors))
    tensors[name] = torch.zeros(2, 3)
    save_file(tensors, tmp_path / "other.safetensors")
    given = {"a": models["a"], "other": str(tmp_path / "other.safetensors")}
    with pytest.raises(MergeError, match=rf"'{re.escape(name)}' has the shape \(2, 3\) in other"):
        ModelMerge(given, TASKS, method="linear", architecture=network)


@pytest.mark.parametrize("variety", VARIETIES)
def test_the_weights_along_the_front_are_a_card(make: Any, variety: str):
    problem = make(**VARIETIES[variety])
    study = moopt.Study("merge", problem, "random").run(trials=8)
    card = weights_card(study.history)
    assert card is not None
    assert card.title == TITLE
    assert [trace.name for trace in card.figure.data] == list("abc")
    for row, trial in zip(card.table.to_dict("records"), study.history.front(), strict=True):
        recipe = problem.recipe(trial.config)
        wanted = {model: np.mean(list(recipe.weights[model].values())) for model in "abc"}
        assert {model: row[model] for model in "abc"} == pytest.approx(wanted)


def test_a_merge_without_trials_says_so_and_others_have_no_weights(make: Any):
    empty = weights_card(moopt.Study("merge", make(), "random").history)
    assert empty is not None
    assert "No trial" in empty.reason
    assert weights_card(moopt.Study("toy", BitToy(3), "random").run(trials=4).history) is None


def test_rows_and_columns_are_named_by_group_and_model(make: Any):
    problem = make(**VARIETIES["simplex"])
    assert {(d["row"], d["column"]) for d in problem.decisions()} == {
        ("rest", "weight a"),
        ("rest", "weight b"),
    }
