"""Real tiny networks: trained once, repeatable, worse with fewer bits, and small."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

import moopt
from moopt.errors import ProblemError
from moopt.jobs import Job, perform
from moopt.problem import capabilities
from moopt_problems.synthetic import DigitsBits


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def problem(request: pytest.FixtureRequest) -> DigitsBits:
    made = DigitsBits(request.param)
    made.setup(moopt.Resources())
    return made


def test_fewer_bits_are_smaller_and_worse(problem: DigitsBits) -> None:
    outcomes = [perform(problem, Job(0, config, fidelity=problem.fidelity)) for config in problem.baselines().values()]
    assert all(isinstance(outcome, moopt.Evaluation) for outcome in outcomes)
    values = [outcome.values for outcome in outcomes]  # type: ignore[union-attr]
    sizes = [problem.known(config)["size_kb"] for config in problem.baselines().values()]
    assert sizes == sorted(sizes)
    assert [v["kl"] for v in values] == sorted((v["kl"] for v in values), reverse=True)
    assert values[0]["kl"] > 0.1
    assert values[-1]["kl"] < 1e-3
    assert values[0]["damaged_loss"] > values[-1]["damaged_loss"]


def test_evaluations_repeat_also_after_others_and_elsewhere(problem: DigitsBits) -> None:
    rng = np.random.default_rng(0)
    config, other = problem.space.sample(rng), problem.space.sample(rng)
    first = problem.evaluate(config, problem.fidelity)
    problem.evaluate(other, problem.fidelity)
    assert problem.evaluate(config, problem.fidelity) == first
    assert pickle.loads(pickle.dumps(problem)).evaluate(config, problem.fidelity) == first


def test_it_takes_twenty_decisions_or_more_and_knows_its_bytes(problem: DigitsBits) -> None:
    assert len(problem.space) >= 20
    config = problem.space.sample(np.random.default_rng(0))
    by_hand = sum(rows * (-(-columns * config[name] // 8) + 3) for name, (rows, columns) in problem.shapes.items())
    assert problem.known(config)["size_kb"] == pytest.approx(by_hand / 1000)
    moved = problem.moves(config, np.random.default_rng(1))
    assert sum(moved[name] != config[name] for name in config) in (1, 2)
    assert {entry["name"] for entry in problem.decisions()} == set(problem.space.names)


def test_probes_are_there_if_asked_for_and_counted() -> None:
    assert "sensitivities" not in capabilities(DigitsBits("mlp"))
    problem = DigitsBits("mlp", (2, 8), sensitivities=True)
    table = problem.sensitivities("probes", 0)
    assert table.shape == (22, 2)
    assert (table[:, 0] > table[:, 1]).mean() > 0.9
    assert problem.sensitivity is not None
    assert problem.forward_tokens("sensitivity", problem.sensitivity) == 44


def test_what_it_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match="no network 'cnn'; expected one of mlp, transformer"):
        DigitsBits("cnn")
    with pytest.raises(ProblemError, match="the width 9; expected whole numbers from 1 to 8"):
        DigitsBits("mlp", (2, 9))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ProblemError, match="pip install scikit-learn"):
        DigitsBits("mlp").setup(moopt.Resources())
