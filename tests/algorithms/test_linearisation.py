"""Gradients around drawn candidates: within the budget, the same whenever asked, nearer with every step."""

from __future__ import annotations

import numpy as np

from moopt.algorithms.changes import Changes
from moopt.algorithms.linearisation import Linearisation
from moopt.jobs import Failure
from moopt.problem import Evaluation

COSTS = np.tile([2, 3, 4, 6], (12, 1))
LOSSES = np.tile([8.0, 4.0, 2.0, 1.0], (12, 1)) * np.arange(1, 13)[:, None]
BUDGET = 40


def known() -> Linearisation:
    changes = Changes(COSTS)
    changes.begin(LOSSES, 1)
    return Linearisation(COSTS, BUDGET, 3, changes)


def told(table: np.ndarray) -> Evaluation:
    return Evaluation({}, attributes={"linear": table.tolist(), "curvature": np.zeros_like(table).tolist()})


def test_draws_keep_the_budget_and_depend_on_seed_step_and_sample_alone() -> None:
    near = known()
    draws = [near.draw(sample, 1.0, 0) for sample in range(3)]
    assert all(COSTS[np.arange(12), choice].sum() <= BUDGET for choice in draws)
    again = known()
    assert all((again.draw(sample, 1.0, 0) == draws[sample]).all() for sample in (2, 0, 1))
    assert any((known().draw(sample, 1.0, 1) != draws[sample]).any() for sample in range(3))


def test_the_colder_the_nearer_to_the_best_choice() -> None:
    best = Linearisation(COSTS, BUDGET, 1, known().changes).draw(0, 1e-9, 0)
    hot, cold = (
        np.mean([(known().draw(sample, heat, 0) != best).sum() for sample in range(20)]) for heat in (1.0, 0.1)
    )
    assert cold < hot


def test_a_step_ends_with_its_last_sample_and_is_learned_in_their_order() -> None:
    tables, choice = [LOSSES * factor for factor in (1.0, 2.0, 5.0)], np.zeros(12, dtype=np.int64)
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        near = known()
        for sample in order:
            near.issued(sample)
        assert near.under_way
        assert near.left == []
        ended = [near.tell(sample, choice, told(tables[sample])) for sample in order]
        assert ended == [False, False, True]
        assert not near.under_way
        assert near.left == [0, 1, 2]
        assert near.steps == 1
        found.append(near.changes.table)
    assert (found[0] == found[1]).all()


def test_what_failed_says_nothing() -> None:
    near = known()
    before = near.changes.table
    assert [near.tell(sample, np.zeros(12, dtype=np.int64), Failure("error", "no")) for sample in range(3)][-1]
    assert (near.changes.table == before).all()


def test_decisions_of_which_nothing_is_known_stay_where_they_are() -> None:
    changes = Changes(COSTS)
    partly = LOSSES.copy()
    partly[3] = np.inf
    changes.begin(partly, 1)
    at = np.full(12, 1)
    assert {int(Linearisation(COSTS, BUDGET, 1, changes).draw(s, 1.0, 0, at)[3]) for s in range(20)} == {1}
