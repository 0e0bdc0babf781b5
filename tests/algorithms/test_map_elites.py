import sys
from itertools import product

import pytest

import moopt
from moopt.algorithms import Algorithm, MAPElites, Random
from moopt.descriptors import Descriptor
from moopt.errors import AlgorithmError
from moopt.testing.algorithms import AlgorithmSuite, drive
from moopt.testing.landscapes import LEVELS, Landscape
from moopt.views.elites import elites_map
from moopt_problems.synthetic import BitToy


class TestMAPElites(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return MAPElites(opening=8)


class Told(Landscape):
    """Tells the share of layers at 8 bits."""

    def evaluate(self, config, fidelity):
        share = sum(bits == 8 for bits in config.values()) / len(config)
        return moopt.Evaluation(super().evaluate(config, fidelity).values, attributes={"eight": share})


@pytest.mark.parametrize(
    ("problem", "spans", "best"),
    [
        (Landscape(known=True), ["f1"], "f0"),
        (Landscape(objectives=3), ["f1", "f2"], "f0"),
        (Landscape(objectives=1), ["f0"], "f0"),
    ],
    ids=["known", "measured", "single"],
)
def test_the_map_spans_what_is_known_else_the_other_objectives(problem: Landscape, spans: list, best: str):
    found = elites_map(moopt.Study("s", problem, MAPElites(opening=5)).run(12).history)
    assert [side.name for side in found.sides] == spans
    assert found.best.name == best


def test_a_users_descriptors_may_be_attributes():
    algorithm = MAPElites([Descriptor("eight", 0, 1, 6), "f1"], quality="f1", opening=10)
    found = elites_map(moopt.Study("s", Told(), algorithm).run(60).history)
    assert [len(edges) - 1 for edges in found.edges] == [6, 20]
    for cell, trial in found.elites.items():
        assert sum(bits == 8 for bits in trial.config.values()) == cell[0]


def test_parents_are_the_best_of_their_cells_and_those_of_the_card():
    algorithm = MAPElites(["mean"], opening=10)
    study = moopt.Study("s", Landscape(LEVELS, constraint="measured"), algorithm).run(80)
    assert [algorithm.archive.jobs[place].trial for place in algorithm._elites()] == sorted(
        trial.number for trial in elites_map(study.history).elites.values()
    )


def test_it_fills_a_map_better_than_random_search():
    problem = BitToy(20)
    ours, random = (
        elites_map(moopt.Study("s", problem, algorithm).run(300).history).elites
        for algorithm in (MAPElites(), Random())
    )
    common = ours.keys() & random.keys()
    assert len(ours) >= 18
    assert sum(ours[c].values["loss"] <= random[c].values["loss"] for c in common) > 0.8 * len(common)


def test_a_candidate_that_lacks_a_descriptor_is_left_off_the_map(caplog: pytest.LogCaptureFixture):
    class Sometimes(Told):
        def evaluate(self, config, fidelity):
            found = super().evaluate(config, fidelity)
            return found if config["layer0"] == 2 else moopt.Evaluation(found.values)

    algorithm = MAPElites(["eight"], opening=10)
    history = moopt.Study("s", Sometimes(), algorithm).run(20).history
    assert len(history.trials) == 20
    assert {t.config["layer0"] for t in elites_map(history).elites.values()} == {2}
    assert "left off the map: The map's descriptor 'eight' is None" in caplog.text


def test_a_descriptor_that_no_candidate_has_is_named(caplog: pytest.LogCaptureFixture):
    history = moopt.Study("s", Landscape(), MAPElites(["speed"])).run(2).history
    assert "Candidates have f0, f1" in caplog.text
    with pytest.raises(AlgorithmError, match=r"'speed' is None .* Candidates have f0, f1"):
        elites_map(history)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAPElites("size"), "expected a list"),
        (lambda: MAPElites([]), "expected a list"),
        (lambda: MAPElites([Descriptor("size", 3, 1)]), "expected low < high"),
        (lambda: MAPElites([Descriptor("size", bins=0)]), "whole number"),
        (lambda: MAPElites([Descriptor("")]), "non-empty"),
        (lambda: drive(MAPElites(quality="speed"), Landscape(), 2), "expected one of f0, f1"),
    ],
)
def test_nonsense_is_refused(make, message: str):
    with pytest.raises(AlgorithmError, match=message):
        make()


def test_without_pyribs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ribs.archives", None)
    with pytest.raises(AlgorithmError, match=r"pip install -e '\.\[qd\]' in the clone"):
        drive(MAPElites(), Landscape(), 2)


def test_settings_are_those_of_equal_maps():
    named = [MAPElites([name, Descriptor("b", bins=bins)]).settings() for name, bins in product("ac", (3, 3))]
    assert named[0] == named[1] != named[2]
    assert named[0]["descriptors"][0] == {"name": "a", "low": None, "high": None, "bins": 20}
