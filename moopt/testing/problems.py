"""What a problem promises, as tests that its author runs, too."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from moopt.jobs import Failure, Job, perform
from moopt.problem import (
    HasCosts,
    HasFeatures,
    HasGradient,
    HasMoves,
    HasRepair,
    HasSensitivities,
    Problem,
    Resources,
    capabilities,
    known_values,
)
from moopt.space import Config


class ProblemSuite:
    """The contract of a problem, as tests.

    ```python
    class TestMine(ProblemSuite):
        @pytest.fixture
        def problem(self) -> Problem:
            return Mine(tokens=128)
    ```
    """

    draws = 3
    """Configurations that a test draws."""

    @pytest.fixture
    def problem(self) -> Problem:
        """A new problem, cheap to evaluate; equal each time."""
        raise NotImplementedError

    @pytest.fixture
    def ready(self, problem: Problem) -> Problem:
        """The same, set up."""
        problem.setup(Resources(device="cpu", threads=1))
        return problem

    def test_names_are_there_once(self, problem: Problem) -> None:
        assert len(problem.space) > 0
        names = [each.name for each in problem.objectives]
        assert names
        assert len(set(names)) == len(names)

    def test_baselines_are_configurations(self, problem: Problem) -> None:
        for label, config in problem.baselines().items():
            assert label
            assert problem.space.validate(config) == config

    def test_every_decision_is_drawn(self, problem: Problem) -> None:
        assert [each["name"] for each in problem.decisions()] == list(problem.space.names)
        assert all({"row", "column", "label"} <= set(each) for each in problem.decisions())

    def test_its_identity_is_json_and_equal_for_equal_problems(self, problem: Problem) -> None:
        found = problem.fingerprint()
        assert json.loads(json.dumps(found)) == found
        assert {"identity", "environment"} <= set(found)
        assert pickle.loads(pickle.dumps(problem)).fingerprint() == found
        arguments = getattr(problem, "arguments", None)
        if arguments is not None:
            assert type(problem)(**arguments()).fingerprint() == found

    def test_what_is_known_is_exact_and_free(self, problem: Problem) -> None:
        for config in self.configs(problem):
            first = known_values(problem, config)
            assert first == known_values(problem, dict(config))

    def test_evaluations_keep_the_contract_and_repeat(self, ready: Problem) -> None:
        for number, config in enumerate(self.configs(ready)):
            first, second = (perform(ready, Job(number, config, fidelity=ready.fidelity)) for _ in range(2))
            assert not isinstance(first, Failure), first
            assert not isinstance(second, Failure), second
            assert first.values == second.values
            assert first.samples == second.samples

    def test_a_configuration_is_not_changed(self, ready: Problem) -> None:
        for config in self.configs(ready):
            before = dict(config)
            known_values(ready, config)
            ready.evaluate(config, ready.fidelity)
            assert config == before

    def test_measurements_measure(self, ready: Problem) -> None:
        config = next(self.configs(ready))
        for purpose, fidelity in ready.measurements.items():
            found = perform(ready, Job(0, config, "measure", fidelity))
            assert not isinstance(found, Failure), (purpose, found)
            assert found.values

    def test_a_copy_in_another_process_evaluates_the_same(self, ready: Problem) -> None:
        copy, config = pickle.loads(pickle.dumps(ready)), next(self.configs(ready))
        copy.setup(Resources(device="cpu", threads=1))
        assert copy.evaluate(config, copy.fidelity).values == ready.evaluate(config, ready.fidelity).values

    def test_what_it_can_do_besides_fits_the_space(self, ready: Problem) -> None:
        rng = np.random.default_rng(0)
        for config in self.configs(ready):
            if isinstance(ready, HasMoves) and "moves" in capabilities(ready):
                moved = ready.moves(config, rng)
                assert moved == ready.space.validate(moved)
            if isinstance(ready, HasRepair) and "repair" in capabilities(ready):
                repaired = ready.repair(config, rng)
                assert repaired == ready.space.validate(repaired)
            if isinstance(ready, HasFeatures) and "features" in capabilities(ready):
                assert np.isfinite(ready.features(config)).all()
        rows = int(ready.space.discrete.sum())
        if isinstance(ready, HasCosts) and "costs" in capabilities(ready):
            costs = ready.costs()
            assert len(costs) == rows
            assert np.issubdtype(costs.dtype, np.integer)
        if ready.sensitivity is not None and isinstance(ready, HasSensitivities):
            outcome = perform(ready, Job(-1, {}, "sensitivity", ready.sensitivity))
            assert not isinstance(outcome, Failure), outcome
            assert len(outcome.attributes["table"]) == rows
        if isinstance(ready, HasGradient) and "gradient" in capabilities(ready):
            tokens = ready.gradient_tokens or ready.fidelity.tokens
            _, linear, curvature = ready.gradient(next(self.configs(ready)), type(ready.fidelity)(tokens, 0))
            assert linear.shape == curvature.shape
            assert not np.isnan(linear).any()

    def configs(self, problem: Problem) -> Iterator[Config]:
        """Some configurations: the first baseline, if there is one, and draws."""
        yield from list(problem.baselines().values())[:1]
        rng = np.random.default_rng(0)
        for _ in range(self.draws):
            drawn = problem.space.sample(rng)
            repairs = isinstance(problem, HasRepair) and "repair" in capabilities(problem)
            yield problem.repair(drawn, rng) if repairs else drawn  # type: ignore[attr-defined]
