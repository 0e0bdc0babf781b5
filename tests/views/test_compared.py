from __future__ import annotations

import numpy as np
import pytest

import moopt
from moopt import History, Objective
from moopt.errors import StudyError, StudyMismatch
from moopt.testing.landscapes import Landscape
from moopt.views import Card, comparison
from moopt.views.attainment import attainment
from moopt.views.compared import dominated_share
from moopt.views.rivals import rivals

FRONTS = [np.array([[1.0, 4.0], [3.0, 1.0]]), np.array([[2.0, 3.0]]), np.array([[1.0, 5.0], [4.0, 2.0]])]


@pytest.fixture(scope="module")
def histories() -> list[History]:
    problem = Landscape(known=True)
    searches = [("nsga2", 0), ("nsga2", 1), ("nsga2", 2), ("random", 0)]
    return [moopt.Study(f"{name}-{seed}", problem, name, seed=seed).run(40).history for name, seed in searches]


def shown(histories: list[History]) -> dict[str, Card]:
    return {card.title: card for card in comparison(histories)}


def test_every_study_has_its_whole_front_in_the_colour_of_its_search(histories: list[History]) -> None:
    card = shown(histories)["The fronts"]
    assert [len(trace.x) for trace in card.figure.data] == [len(history.front()) for history in histories]
    colours = [trace.line.color for trace in card.figure.data]
    assert colours[0] == colours[1] == colours[2] != colours[3]
    assert [trace.name for trace in card.figure.data if trace.showlegend] == ["NSGA2", "Random"]


def test_hypervolumes_have_one_reference_point(histories: list[History]) -> None:
    found, cards = rivals(histories), shown(histories)
    corner = dict(zip((o.name for o in found.objectives), found.corner, strict=True))
    signs = {o.name: o.sign for o in found.objectives}
    expected = [h.hypervolume({name: value * signs[name] for name, value in corner.items()}) for h in histories]
    assert cards["The studies"].table["hypervolume"].tolist() == pytest.approx(expected)
    last = cards["Progress, side by side"].table.groupby("study", sort=False)["hypervolume"].last()
    assert last.tolist() == pytest.approx(expected)


def test_the_share_dominated_is_strict() -> None:
    ours, theirs = np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([[1.0, 1.0], [2.0, 1.0], [0.5, 2.0], [1.0, 4.0]])
    assert dominated_share(ours, theirs) == 0.5
    assert dominated_share(theirs, ours) == 0.0
    assert np.isnan(dominated_share(ours, ours[:0]))


def test_of_a_front_that_another_is_better_than_everywhere_all_is_dominated(histories: list[History]) -> None:
    table = shown([histories[0], histories[3]])["Who dominates whom"].table.set_index("dominates")
    a, b = (rivals(histories).members[i].points for i in (0, 3))
    better = [any((p <= q).all() and (p < q).any() for p in a) for q in b]
    assert table.loc["nsga2-0", "of random-0"] == np.mean(better) > 0


@pytest.mark.parametrize("name", ["best", "median", "worst"])
def test_a_surface_is_what_so_many_fronts_attain(name: str) -> None:
    needed = {"best": 1, "median": 2, "worst": 3}[name]
    surface = attainment(FRONTS)[name]

    def attained(front: np.ndarray, point: tuple[float, float]) -> bool:
        return bool((front <= point).all(axis=1).any())

    for point in [(x / 2, y / 2) for x in range(12) for y in range(12)]:
        assert attained(surface, point) == (sum(attained(front, point) for front in FRONTS) >= needed), point


def test_seeds_of_one_search_have_a_band_and_a_single_study_has_none(histories: list[History]) -> None:
    card = shown(histories)["What each search attains"]
    assert set(card.table["search"]) == {"NSGA2"}
    assert [trace.name for trace in card.figure.data if trace.showlegend is not False] == ["NSGA2, 3 seeds"]
    assert "differ in their seed alone" in shown([histories[0], histories[3]])["What each search attains"].reason


def test_attainment_is_for_two_objectives() -> None:
    three = [moopt.Study(f"s{i}", Landscape(objectives=3), "random", seed=i).run(8).history for i in (0, 1)]
    assert shown(three)["What each search attains"].reason.startswith("There are 3 objectives")


def test_studies_of_one_name_are_told_apart(histories: list[History]) -> None:
    assert [rival.label for rival in rivals([histories[0], histories[0]]).members] == ["nsga2-0", "nsga2-0 (2)"]


def test_other_settings_of_one_algorithm_are_another_search() -> None:
    from moopt.algorithms import NSGA2

    problem = Landscape()
    sizes = [moopt.Study(f"of {n}", problem, NSGA2(n)).run(6).history for n in (10, 20)]
    assert [rival.group for rival in rivals(sizes).members] == ["NSGA2: of 10", "NSGA2: of 20"]


def test_studies_of_different_objectives_are_refused_and_the_difference_is_named() -> None:
    one = History("one", [Objective("kl"), Objective("size", unit="MB")])
    two = History("two", [Objective("kl"), Objective("size", unit="kB")])
    with pytest.raises(StudyMismatch, match=r"'one' and 'two' .* size \(min, in MB\), .* size \(min, in kB\)"):
        comparison([one, two])
    with pytest.raises(StudyMismatch, match=r"the first has size \(min, in MB\), the second has no other"):
        comparison([one, History("three", [Objective("kl")])])
    with pytest.raises(StudyError, match="no study"):
        comparison([])


def test_the_order_of_objectives_does_not_matter(histories: list[History]) -> None:
    turned = History("turned", histories[0].objectives[::-1], (), {}, histories[0].trials, histories[0].events)
    a, b = shown([histories[0], turned])["The studies"].table["hypervolume"]
    assert a == b
