"""BitAllocation with options besides widths: formats, and files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moopt
from moopt.algorithms import SequentialKnapsack
from moopt.backend.quantizers import RTN, EoRA
from moopt.budgets import Knapsack
from moopt.errors import ProblemError, QuantizationError, StudyMismatch
from moopt.report import write_report
from moopt_problems import BitAllocation
from tests.backend import files
from tests.backend.conftest import make_model

SMALL: dict[str, Any] = {
    "group_size": 32, "text": "prose", "tokens": 256, "context": 64, "held_out": 0, "validation": 0,
    "sensitivity_tokens": 1024,
}  # fmt: skip
MIXED = (2, "nf4", 4, "fp4", "fp8-e4m3", 8)


@pytest.fixture
def problem(tiny: Path) -> BitAllocation:
    return BitAllocation(str(tiny), bits=MIXED, **SMALL)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPTQ folder of the tiny model."""
    folder = tmp_path_factory.mktemp("files") / "theirs"
    files.gptq(make_model("llama-tied"), folder)
    return str(folder)


def test_options_are_in_the_order_of_their_bytes(problem: BitAllocation) -> None:
    variable = next(iter(problem.space.values()))
    assert variable == moopt.Ordinal(2, "fp4", "nf4", 4, "fp8-e4m3", 8)
    costs = problem.costs()
    assert (np.diff(costs) >= 0).all()
    assert (costs[:, 1] == costs[:, 2]).all()
    count = sum(w.count for w in problem.inventory.linears())
    sizes = {name: problem.bytes(config) for name, config in problem.baselines().items()}
    assert [*sizes] == ["uniform-2", "uniform-fp4", "uniform-nf4", "uniform-4", "uniform-fp8-e4m3", "uniform-8"]
    assert sizes["uniform-4"] - sizes["uniform-nf4"] == count // 32  # zero points
    assert sizes["uniform-fp8-e4m3"] - sizes["uniform-nf4"] == count // 2
    assert problem.bits(problem.baselines()["uniform-nf4"]) == 4


def test_the_search_chooses_among_widths_and_formats(problem: BitAllocation, tmp_path: Path) -> None:
    storage = tmp_path / "s.journal"
    study = moopt.Study("mixed", problem, SequentialKnapsack(tokens=512), storage=storage).run(trials=8)
    trials = [t for t in study.history.trials if t.evaluation is not None]
    marked = {t.label: t.evaluation.attributes.get("simulated") for t in trials if t.label and t.evaluation}
    assert marked["uniform-nf4"] == ["nf4"]
    assert marked["uniform-4"] is None
    kl = {t.label: t.values["kl"] for t in trials}
    assert kl["uniform-8"] < kl["uniform-fp8-e4m3"] < kl["uniform-nf4"] < kl["uniform-2"]
    _, linear, curvature = problem.gradient(problem.baselines()["uniform-nf4"], moopt.Fidelity(256, 0))
    assert np.isfinite(linear).all()
    assert (linear[:, 2] == 0).all()
    assert (curvature[:, [0, 1, 3]] > 0).all()
    again = moopt.Study("mixed", problem, SequentialKnapsack(tokens=512), storage=storage).run(trials=8)
    assert len(again.history.events) == len(study.history.events)
    assert write_report(study.history, tmp_path / "report.html").exists()


def test_exact_allocation_takes_the_better_of_equal_bytes(problem: BitAllocation) -> None:
    table = problem.sensitivities("weight-error", 0)
    choice = Knapsack(table, problem.costs()).at(int(problem.costs()[:, 2].sum()))
    taken = {problem.decided[name].options[i] for name, i in zip(problem.space, choice, strict=True)}
    assert "nf4" in taken
    assert "fp4" not in taken


def test_what_is_simulated_is_neither_saved_nor_timed(problem: BitAllocation, tmp_path: Path) -> None:
    baselines = problem.baselines()
    with pytest.raises(QuantizationError, match="is stored as 'nf4', which is simulated: no kernel runs it"):
        problem.save(baselines["uniform-nf4"], tmp_path / "model.safetensors")
    with pytest.raises(QuantizationError, match="is stored as 'fp4', which is simulated"):
        problem.save_slices({"a": baselines["uniform-8"], "b": baselines["uniform-fp4"]}, tmp_path / "f.safetensors")
    path = problem.save(baselines["uniform-4"], tmp_path / "model.safetensors")
    assert path.stat().st_size == problem.bytes(baselines["uniform-4"])
    with pytest.raises(ProblemError, match="decode_ms or prefill_ms, and nf4, which no kernel runs"):
        BitAllocation(problem.model, bits=(4, "nf4"), objectives=("kl", "decode_ms"), **SMALL)


def test_formats_files_and_repairs_are_options_of_one_decision(tiny: Path, theirs: str, tmp_path: Path) -> None:
    how = EoRA(RTN(), ranks=(0, 4))
    problem = BitAllocation(str(tiny), bits=(2, "nf4", 4), external={"theirs": theirs}, quantizer=how, **SMALL)
    assert (np.diff(problem.costs()) >= 0).all()
    for decision in problem.decided.values():
        assert {*decision.options} == {2, "2+r4", "nf4", 4, "4+r4", "theirs"}
    baselines = problem.baselines()
    assert problem.bits(baselines["uniform-nf4"]) == 4 < problem.bits(baselines["uniform-4+r4"])
    found = {name: problem.evaluate(baselines[f"uniform-{name}"], problem.fidelity) for name in ("nf4", "4+r4")}
    assert found["nf4"].attributes["simulated"] == ["nf4"]
    assert "simulated" not in found["4+r4"].attributes
    for proxy in ("fisher", "shiftaddllm"):
        assert np.isfinite(problem.sensitivities(proxy, 512)).all()
    path = problem.save(baselines["uniform-4+r4"], tmp_path / "model.safetensors")
    assert path.stat().st_size == problem.bytes(baselines["uniform-4+r4"])
    with pytest.raises(QuantizationError, match="is stored as 'nf4', which is simulated"):
        problem.save(baselines["uniform-nf4"], tmp_path / "model.safetensors")


def test_formats_stand_beside_binary_codes(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, "nf4"), quantizer="bcq", calibration_tokens=256, **SMALL)
    found = problem.evaluate(problem.baselines()["uniform-nf4"], problem.fidelity)
    assert found.attributes["simulated"] == ["bcq", "nf4"]  # the embedding is bcq's


def test_an_embedding_may_have_a_format(tiny: Path) -> None:
    fixed = BitAllocation(str(tiny), bits=(4, 8), embedding="fp8-e4m3", **SMALL)
    assert [*fixed.fixed.values()] == ["fp8-e4m3"]
    decided = BitAllocation(str(tiny), bits=(4, 8), embedding=(4, "nf4", 8), sensitivities=None, **SMALL)
    assert decided.space["embedding"] == moopt.Ordinal("nf4", 4, 8)
    kl = []
    for option in ("nf4", 8):
        config = {**decided.baselines()["uniform-8"], "embedding": option}
        kl.append(decided.evaluate(config, decided.fidelity).values["kl"])
    assert kl[1] < kl[0]


def test_files_of_other_tools_are_options_of_the_layers_they_have(tiny: Path, theirs: str) -> None:
    problem = BitAllocation(str(tiny), bits=(4, 8), external={"theirs": theirs}, **SMALL)
    assert next(iter(problem.space.values())) == moopt.Ordinal(4, "theirs", 8)  # with float16 scales and a group index
    config = problem.baselines()["uniform-theirs"]
    found = problem.evaluate(config, problem.fidelity)
    assert found.attributes["simulated"] == ["theirs"]
    assert problem.bits(config) == 4
    fixed = problem.bytes(config) - int(problem.costs()[:, 1].sum())
    per_matrix = {
        w: w.count // 2 + w.count // 32 * 2 + w.count // 64 + 4 * w.shape[1] for w in problem.inventory.linears()
    }
    assert problem.bytes(config) == fixed + sum(per_matrix.values())
    table = problem.sensitivities("fisher", 1024)
    assert np.isfinite(table).all()
    with pytest.raises(QuantizationError, match="is stored as 'theirs', which is simulated"):
        problem.save(config, tiny / "never")


def test_a_file_that_has_only_some_layers_is_an_option_of_those(tiny: Path, theirs: str) -> None:
    problem = BitAllocation(str(tiny), bits=(4, 8), external={"theirs": theirs}, skip=("*.1.*",), **SMALL)
    assert "uniform-theirs" in problem.baselines()
    with pytest.raises(QuantizationError, match=r"has no quantized model\.embed_tokens"):
        BitAllocation(str(tiny), bits=(4, 8), embedding=(8, "theirs"), external={"theirs": theirs}, **SMALL)


def test_a_study_keeps_to_the_contents_of_its_files(tiny: Path, tmp_path: Path) -> None:
    files.gptq(make_model("llama-tied"), tmp_path / "theirs")
    arguments = {**SMALL, "bits": (4, 8), "sensitivities": None, "external": {"theirs": str(tmp_path / "theirs")}}
    moopt.Study("external", BitAllocation(str(tiny), **arguments), "random", storage=tmp_path / "s").run(trials=3)
    files.gptq(make_model("llama-tied"), tmp_path / "theirs", bits=3)
    with pytest.raises(StudyMismatch, match="external"):
        moopt.Study("external", BitAllocation(str(tiny), **arguments), "random", storage=tmp_path / "s").run(trials=4)
    assert "external" not in BitAllocation(str(tiny), **SMALL).fingerprint()["identity"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": (4, "int4")}, "or, simulated, fp4, nf4, fp8-e5m2, fp8-e4m3"),
        ({"embedding": (8, "theirs")}, "Got embedding="),
        ({"external": {"nf4": "x"}}, "Got the external option 'nf4'; expected letters, digits.* and no format's name"),
        ({"external": {"4": "x"}}, "Got the external option '4'; expected letters"),
        ({"external": "folder"}, "Got external='folder'; expected files by name"),
        ({"external": {"theirs": None}}, "Got external={'theirs': None}; expected the path of a file or a folder"),
        ({"external": {"theirs": "nowhere"}}, "Cannot use 'nowhere' as 'theirs'; expected a .gguf file"),
    ],
)
def test_bad_options_are_refused(tiny: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        BitAllocation(**{"model": str(tiny), **SMALL, **arguments})
