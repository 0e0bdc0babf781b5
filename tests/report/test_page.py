from __future__ import annotations

import json
import os
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import moopt
from moopt.errors import ReportError, StorageError
from moopt.report import front_csv, write_report
from moopt.testing.landscapes import Landscape
from moopt.views import cards
from tests.report.conftest import Layers


class Page(HTMLParser):
    """What a browser would load, run and show of a page; its tables line by line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self.policy = self.text = ""
        self.table: list[list[str]] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.loaded += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.loaded += [tag] if tag in ("link", "iframe", "object", "embed", "base") else []
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.table.append([])
        if tag in ("th", "td"):
            self.table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
        if self._inside in ("th", "td"):
            self.table[-1][-1] += data

    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(script) for script in self.scripts if script.startswith('{"data"')]


def test_the_report_loads_nothing(history: moopt.History, tmp_path: Path) -> None:
    page = Page(write_report(history, tmp_path / "report.html"))
    assert page.loaded == []
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy


def test_plotly_is_in_it_once_and_draws_every_figure(history: moopt.History, tmp_path: Path) -> None:
    page = Page(write_report(history, tmp_path / "report.html"))
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1
    drawn = sum(card.figure is not None for card in cards(history))
    assert len(page.figures()) == drawn > 4
    assert len(page.scripts) == drawn + 3  # and the templates, plotly itself and what calls it


def test_names_and_messages_are_text(history: moopt.History, tmp_path: Path) -> None:
    page = Page(write_report(history, tmp_path / "report.html"))
    assert page.text.count("</script><script>alert(1)</script>") == 3  # the title, the heading and what was run
    assert "ValueError: </script><script>alert('two <b>odd</b> layers')</script>" in page.text
    assert not any(script.startswith("alert") for script in page.scripts)


def test_the_report_begins_with_what_was_found(history: moopt.History, tmp_path: Path) -> None:
    text = Page(write_report(history, tmp_path / "report.html")).text
    assert "A candidate is 4 decisions, each one of 2, 4 or 8. Random tried 60 candidates" in text
    assert "At the size of uniform-4 the front's kl is" in text


def test_a_study_without_trials_has_a_report(tmp_path: Path) -> None:
    study = moopt.Study("nothing yet", Layers(), "random")
    assert "No trial has been started yet." in Page(write_report(study.history, tmp_path / "report.html")).text


def test_the_report_replaces_what_was_there_and_leaves_nothing_else(history: moopt.History, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(history, path) == path
    path.write_text("old")
    write_report(history, str(path))
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(history: moopt.History, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"Cannot write {tmp_path}"):
        write_report(history, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "/", "plain.txt/x.html", "a" * 300 + ".html"])
def test_what_is_no_place_for_a_file_is_refused_in_a_line(
    history: moopt.History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"Cannot write .*Give another path"):
        write_report(history, name)
    assert [each.name for each in tmp_path.iterdir()] == ["plain.txt"]


def test_a_link_stays_one_and_a_pipe_is_written_into(history: moopt.History, tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target.html", "link.html", "pipe.html"))
    link.symlink_to(target)
    write_report(history, link)
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_report(history, pipe)
    reader.join(10)
    assert read == [target.read_bytes()]
    assert pipe.is_fifo()


def test_a_card_that_fails_says_so_and_leaves_the_others(
    history: moopt.History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_card(history: moopt.History) -> None:
        raise ZeroDivisionError("nothing there")

    monkeypatch.setattr("moopt.views.VIEWS", (*moopt.views.VIEWS, failing_card))
    page = write_report(history, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This card cannot be drawn: ZeroDivisionError: nothing there." in page
    assert "What to ship" in page


def test_the_csv_holds_the_front_with_its_decisions_and_held_out_figures(
    history: moopt.History, tmp_path: Path
) -> None:
    table = pd.read_csv(front_csv(history, tmp_path / "front.csv"), index_col="trial")
    front = history.front()
    assert table.index.tolist() == [trial.number for trial in front]
    for trial, (_, row) in zip(front, table.iterrows(), strict=True):
        assert row["kl"] == pytest.approx(trial.values["kl"])
        assert row["kl (held-out)"] == history.measures[trial.number, "held-out"].values["kl"]
        assert {name: row[f"config.{name}"] for name in trial.config} == trial.config


def test_the_csv_of_an_empty_front_has_no_lines(tmp_path: Path) -> None:
    study = moopt.Study("nothing yet", Layers(), "random")
    assert front_csv(study.history, tmp_path / "front.csv").read_text() == "trial\n"


PLAIN = {("complete", True)}
HARD = ("constrained", "three objectives")
STUDIES = {
    "plain": Landscape(known=True),
    "constrained": Landscape(known=True, constraint="measured", behaviour="flaky"),
    "three objectives": Landscape(objectives=3, constraint="measured", behaviour="flaky"),
    "one objective": Landscape(objectives=1),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_best_points_shown_are_those_of_the_front(name: str, tmp_path: Path) -> None:
    study = moopt.Study(name, STUDIES[name], "random", seed=4).run(trials=60)
    front = study.front().index.tolist()
    assert 0 < len(front) < 60
    outcomes = {(trial.state, trial.feasible) for trial in study.history.trials}
    assert outcomes == ({("complete", True), ("complete", False), ("failed", False)} if name in HARD else PLAIN)
    page = Page(write_report(study.history, tmp_path / "front.html", ["front"]))
    role = page.table[0].index("role")
    assert [int(line[0]) for line in page.table[1:] if line[role] == "front"] == sorted(front)
    drawn = next(trace for trace in page.figures()[0]["data"] if trace["name"] in ("front", "best"))
    assert sorted(drawn["customdata"]) == sorted(front)
    listed = Page(write_report(study.history, tmp_path / "list.html", ["held_out"])).table
    assert [int(line[0]) for line in listed[1:]] == front
    assert pd.read_csv(front_csv(study.history, tmp_path / "front.csv"), index_col="trial").index.tolist() == front


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    study = moopt.Study("long", Landscape(known=True), "random", seed=0).run(trials=620)
    page = Page(write_report(study.history, tmp_path / "r.html", ["front"]))
    assert "These are the first 500 of 620 lines" in page.text
    assert len(page.table) == 1 + 500


def test_some_cards_can_be_asked_for(history: moopt.History, tmp_path: Path) -> None:
    text = Page(write_report(history, tmp_path / "r.html", ["front", "run"])).text
    assert "The front" in text
    assert "What was run" in text
    assert "What to ship" not in text


def test_a_card_that_is_not_there_is_refused_with_those_that_are(history: moopt.History, tmp_path: Path) -> None:
    for name in ("fornt", "parallel"):  # a wrong name, and one for studies of more objectives
        with pytest.raises(ReportError, match=rf"no card '{name}'; it has shipping, front, decisions, .*, run\."):
            write_report(history, tmp_path / "r.html", [name])
    assert list(tmp_path.iterdir()) == []
