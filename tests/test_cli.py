from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moopt import load_history
from moopt.algorithms import NAMES
from moopt.cli import app
from moopt.cli_targets import settings
from moopt.progress import Display, comparisons

ROOT = Path(__file__).parent.parent

TOY = """
import moopt

class Toy(moopt.Problem):
    space = moopt.Space({"x": moopt.Float(0, 1), "bits": moopt.Ordinal(2, 4, 8)})
    objectives = (moopt.Objective("loss"), moopt.Objective("size", unit="MB", known=True))
    fidelity = moopt.Fidelity(100)

    def __init__(self, scale=1.5, widths=(2, 8), kind="plain", fails=()):
        self.scale, self.widths, self.kind, self.fails = scale, widths, kind, fails
        if scale <= 0:
            raise ValueError(f"scale is {scale}")

    def arguments(self):
        return {"scale": self.scale, "widths": self.widths, "kind": self.kind, "fails": self.fails}

    def baselines(self):
        return {f"uniform {bits}-bit": {"x": 1.0, "bits": bits} for bits in self.widths}

    def known(self, config):
        return {"size": config["bits"] * self.scale}

    def evaluate(self, config, fidelity):
        if config["bits"] in self.fails:
            raise RuntimeError("no luck")
        return moopt.Evaluation({"loss": config["x"] + 1 / config["bits"]})

    def plan(self, trials, extra, resources):
        return {"minutes": {"value": trials / 60, "unit": "min", "how": "one second a trial"}, "workers": 1}

study = moopt.Study("toy", Toy(), "random", storage="toy.journal")
other = study

def made():
    return moopt.Study("made", Toy(scale=3.0), "random")

def needs(something):
    return study
"""

Moopt = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def moopt(folder: Path) -> Moopt:
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def refused(result: Result, code: int = 2) -> str:
    """What an error says: one line, no traceback, nothing on standard output."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: ")
    return last


def test_a_run_prints_its_front_and_stores_it(moopt: Moopt, folder: Path) -> None:
    result = moopt("run", "toy.py:study", "--trials", "12")
    assert result.exit_code == 0
    assert "points on the front of 12 trials" in result.stdout
    assert len(load_history(folder / "toy.journal").trials) == 12


def test_the_only_study_of_a_file_needs_no_name(moopt: Moopt) -> None:
    assert moopt("run", "toy.py", "--trials", "3").exit_code == 0


def test_running_again_goes_on_to_the_same_total(moopt: Moopt) -> None:
    moopt("run", "toy.py", "--trials", "5")
    again = json.loads(moopt("run", "toy.py", "--trials", "8", "--json").stdout)
    assert again["trials"] == {"complete": 8, "failed": 0, "running": 0, "pruned": 0}


@pytest.mark.parametrize("name", ["study", "Toy", "made"])
def test_a_name_may_be_a_study_a_problem_class_or_a_function(moopt: Moopt, name: str) -> None:
    result = moopt("run", f"toy.py:{name}", "--trials", "3", "--json")
    assert json.loads(result.stdout)["trials"]["complete"] == 3


def test_json_is_the_only_thing_on_standard_output(moopt: Moopt) -> None:
    document = json.loads(moopt("run", "toy.py", "--trials", "6", "--json").stdout)
    assert document["study"] == "toy"
    assert document["storage"] == "toy.journal"
    assert document["tokens"] == 600
    assert [o["name"] for o in document["objectives"]] == ["loss", "size"]
    assert set(document["front"][0]["config"]) == {"x", "bits"}


def test_a_run_may_end_by_other_limits_than_trials(moopt: Moopt, folder: Path) -> None:
    ran = moopt("run", "toy.py", "--tokens", "10400")
    assert "points on the front of 104 trials" in ran.stdout
    assert "The search ended: 10400 forward tokens are spent, of 10400.\n" in ran.stderr
    found = json.loads(moopt("run", "toy.py", "--trials", "500", "--patience", "5", "--seconds", "60", "--json").stdout)
    assert 104 < sum(found["trials"].values()) < 500
    assert "expected a number above 0" in refused(moopt("run", "toy.py", "--hypervolume", "0"))


def test_what_auto_takes_is_said_and_kept(moopt: Moopt) -> None:
    begin = ("run", "toy.py:Toy", "--set", "fails=9")
    assert "auto takes nsga2: over 2000 trials" in moopt(*begin, "--trials", "2000", "--tokens", "300").stderr
    assert "auto takes nsga2: the stored study began with it." in moopt(*begin, "--trials", "5").stderr


def test_options_override_what_the_study_says(moopt: Moopt) -> None:
    moopt("run", "toy.py", "--trials", "3", "--storage", "other.journal", "--seed", "7", "--set", "name=mine")
    found = json.loads(moopt("status", "other.journal", "--json").stdout)["studies"]
    assert [(s["study"], s["seed"], s["algorithm"]) for s in found] == [("mine", 7, "Random")]


def test_budgets_are_what_is_searched_within(moopt: Moopt) -> None:
    asked = ["run", "bit-toy", "--trials", "30", "--storage", "toy.journal", "--budget", "size=500,600"]
    done = moopt(*asked, "--budget", "size=700")
    assert done.exit_code == 0, done.stderr
    assert "auto takes sequential-knapsack: budgets are given" in done.stderr
    settings = load_history("toy.journal").meta["identity"]["algorithm"]
    assert settings["budgets"] == {"size": [500.0, 600.0, 700.0]}
    assert "budgets" in refused(moopt(*asked))


def test_a_preference_bounds_and_weighs(moopt: Moopt) -> None:
    asked = ["run", "toy.py", "--trials", "6", "--json", "--prefer", "size <= 7", "--prefer", "loss <= 2"]
    done = moopt(*asked, "--weight", "loss=2", "--weight", "size=0.5")
    assert done.exit_code == 0, done.stderr
    history = load_history("toy.journal")
    assert all(trial.values["size"] <= 7 for trial in history.trials)
    preference = {"bounds": {"size": 7, "loss": 2}, "weights": {"loss": 2, "size": 0.5}, "width": 0.1}
    assert history.meta["identity"]["preference"] == preference
    assert "preference.weights" in refused(moopt(*asked, "--weight", "loss=3"))


def test_an_export_that_cannot_be_is_one_clear_line(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py:study", "--trials", "4")
    for arguments, says in (
        (["--trial", "1", "--format", "moopt"], "moopt holds quantized models; Toy decides no weights"),
        (["--trial", "1", "--format", "onnx"], "There is no format 'onnx'"),
        (["--trial", "99", "--format", "moopt"], "no completed trial 99"),
        (["--format", "moopt"], "Say which candidate: --trial with its number, or --pick with a bound"),
        (["--trial", "1", "--pick", "size <= 3", "--format", "moopt"], "Say which candidate"),
    ):
        found = moopt("export", "toy.py:study", "--out", "served", *arguments)
        assert found.exit_code != 0
        assert says in " ".join(found.output.split())
    assert not (folder / "served").exists()


def test_set_overrides_the_problem(moopt: Moopt) -> None:
    changes = ("--set", "scale=2", "--set", "widths=4", "--set", "kind=7")
    document = json.loads(moopt("run", "toy.py", "--trials", "1", *changes, "--json").stdout)
    assert document["front"][0]["baseline"] == "uniform 4-bit"
    assert document["front"][0]["values"]["size"] == 8


def test_set_gives_a_problem_class_its_arguments(moopt: Moopt) -> None:
    document = json.loads(moopt("run", "toy.py:Toy", "--trials", "2", "--set", "widths=4,8", "--json").stdout)
    assert [point["baseline"] for point in document["front"]] == ["uniform 4-bit", "uniform 8-bit"]


def test_entries_of_a_mapping_are_set_one_by_one() -> None:
    texts = ("bits=2,4", "external.w8=models/w8", "external.q4_0=all.gguf")
    assert settings(texts) == {"bits": (2, 4), "external": {"w8": "models/w8", "q4_0": "all.gguf"}}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.py"], "no file absent.py"),
        (["no_such_module:study"], "no module or problem 'no_such_module'"),
        (["toy.py:studi"], "did you mean 'study'"),
        (["toy.py:TOY"], "has no 'TOY'"),
        (["toy.py:needs"], "needs the arguments something"),
        (["toy.py:moopt"], "is of type module"),
        (["toy.py", "--set", "scale"], "expected key=value"),
        (["toy.py", "--set", "scal=2"], "did you mean 'scale'"),
        (["toy.py", "--set", "scale=2", "--set", "scale.x=3"], "Got 'scale' as a value and, in 'scale.x=3', as a"),
        (["toy.py", "--set", "scale=-1"], "ValueError: scale is -1"),
        (["toy.py:Toy", "--set", "width=2"], "did you mean 'widths'"),
        (["toy.py", "--algorithm", "magic"], "There is no algorithm 'magic'"),
        (["toy.py", "--algorithm", "nsga2@size=3"], "nsga2 has no setting 'size'; it has population_size"),
        (["toy.py", "--algorithm", "rco@budgets.size=two"], "The budgets of 'size' are 'two'; expected numbers"),
        (["toy.py", "--budget", "size=9"], "random takes no budgets; expected 'auto'"),
        (["toy.py", "--algorithm", "nsga2", "--budget", "size=9"], "nsga2 takes no budgets"),
        (["toy.py:Toy", "--budget", "size"], "expected key=value"),
        (["toy.py", "--model", "m"], "has no argument 'model'"),
        (["toy.py", "--set", "threads=abc"], "threads is 'abc'; expected a whole number from 1"),
        (["toy.py", "--storage", ""], "The storage is ''; expected a path"),
        (["toy.py", "--timeout", "inf"], "timeout is inf; expected seconds above 0"),
        (["./toy"], "toy is no Python file: its name does not end in .py"),
        (["toy.py", "--prefer", "size about 3"], "expected a bound such as"),
        (["toy.py", "--prefer", "speed <= 3"], "'speed' is no objective of Toy; expected one of loss, size"),
        (["toy.py", "--prefer", "size >= 3"], "size is best where it is least; expected a bound such as 'size <= 3'"),
        (["toy.py", "--weight", "loss"], "expected key=value"),
        (["toy.py", "--weight", "loss=much"], "expected numbers by objective"),
        (["toy.py", "--weight", "speed=2"], "weights name speed; expected objectives of the problem: loss, size"),
        (["toy.py", "--set", "preference=small"], "The preference is 'small'; expected a moopt.Preference"),
        (["queue.py"], "queue.py hides Python's own module 'queue'"),
    ],
)
def test_bad_input_is_one_clear_line(moopt: Moopt, folder: Path, arguments: list[str], says: str) -> None:
    for copy in ("toy", "queue.py"):
        (folder / copy).write_text(TOY)
    assert says in refused(moopt("run", *arguments))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nraise ValueError('why')\n", "line 2: ValueError: why"),
        ("x = 1\ny = (\n", "line 2: SyntaxError"),
        ("import moopt\nmoopt.Ordinal()\n", "line 2: Ordinal got no values"),
        ("import sys\n\nsys.exit(3)\n", "line 3: SystemExit"),
        ("x = 1\n", "defines no study"),
        (TOY + "third = made()\n", "defines the studies study, other, third"),
    ],
)
def test_a_bad_study_file_is_named_with_its_line(moopt: Moopt, folder: Path, text: str, says: str) -> None:
    (folder / "bad.py").write_text(text)
    message = refused(moopt("run", "bad.py"))
    assert "bad.py" in message
    assert says in message


def test_debug_shows_the_traceback(moopt: Moopt, folder: Path) -> None:
    (folder / "bad.py").write_text("raise ValueError('why')\n")
    result = moopt("run", "bad.py", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_study_of_another_problem_names_what_differs(moopt: Moopt) -> None:
    moopt("run", "toy.py", "--trials", "2")
    assert "seed was 0, is 1" in refused(moopt("run", "toy.py", "--trials", "3", "--seed", "1"))


def test_a_run_whose_trials_all_fail_has_failed(moopt: Moopt) -> None:
    assert "no luck" in refused(moopt("run", "toy.py", "--trials", "4", "--set", "fails=2,4,8"), code=1)


def test_a_failed_trial_does_not_end_the_run(moopt: Moopt) -> None:
    document = json.loads(moopt("run", "toy.py", "--trials", "6", "--set", "fails=2", "--json").stdout)
    assert document["trials"]["failed"] >= 1
    assert sum(document["trials"].values()) == 6


def test_what_a_problem_raises_while_it_loads_is_a_failed_run(moopt: Moopt, folder: Path) -> None:
    (folder / "loads.py").write_text(TOY + "\ndef setup(self, resources): raise OSError('gone')\nToy.setup = setup\n")
    assert "OSError: gone" in refused(moopt("run", "loads.py"), code=1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_began_and_cannot_be_finished_is_no_bad_usage(moopt: Moopt, folder: Path, workers: str) -> None:
    loses = 'import os; os.path.exists("toy.journal") and os.remove("toy.journal"); raise RuntimeError("no luck")'
    (folder / "loses.py").write_text(TOY.replace('raise RuntimeError("no luck")', loses))
    message = refused(moopt("run", "loses.py", "--trials", "9", "--set", "fails=2,4,8", "--workers", workers), code=1)
    assert "Cannot write toy.journal: No such file or directory. It was removed." in message


def test_digits_are_a_name(moopt: Moopt) -> None:
    assert json.loads(moopt("run", "toy.py", "--trials", "1", "--set", "name=5", "--json").stdout)["study"] == "5"


@pytest.mark.parametrize("arguments", [["toy.py"], ["toy.py", "--seed", "1"], ["absent.py"]])
def test_the_log_for_programs_is_json_to_its_last_line(moopt: Moopt, arguments: list[str]) -> None:
    moopt("run", "toy.py", "--trials", "1")
    said = [json.loads(line) for line in moopt("run", *arguments, "--trials", "2", "--log-json").stderr.splitlines()]
    assert said[-1]["message"].startswith("Stored in" if arguments == ["toy.py"] else "Error: ")


def test_debug_shows_what_workers_print(moopt: Moopt, folder: Path) -> None:
    talking = TOY.replace(
        '        if config["bits"] in', '        print("at", config["bits"], flush=True)\n        if config["bits"] in'
    )
    (folder / "talking.py").write_text(talking)
    assert "worker 0: at 2" in moopt("run", "talking.py", "--trials", "2", "--timeout", "60", "--debug").stderr


def test_an_interrupted_run_goes_on(moopt: Moopt, folder: Path) -> None:
    (folder / "stops.py").write_text(TOY.replace('raise RuntimeError("no luck")', "raise KeyboardInterrupt"))
    assert moopt("run", "stops.py", "--trials", "9", "--set", "fails=8").exit_code == 130
    result = moopt("run", "stops.py", "--trials", "9", "--json")
    assert json.loads(result.stdout)["trials"]["complete"] == 9


def test_a_storage_in_use_is_refused(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "2")
    with open(folder / "toy.journal.owner") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert "in use" in refused(moopt("run", "toy.py", "--trials", "3"), code=3)
        assert moopt("status", "toy.journal").exit_code == 0


def test_plan_tells_how_each_figure_was_found(moopt: Moopt) -> None:
    result = moopt("plan", "toy.py", "--trials", "120")
    assert result.exit_code == 0
    assert "one second a trial" in result.stdout
    assert json.loads(moopt("plan", "toy.py", "--trials", "120", "--json").stdout)["needs"]["minutes"]["value"] == 2


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_budget_that_nothing_meets_is_refused(moopt: Moopt, command: str) -> None:
    said = refused(moopt(command, "bit-toy", "--algorithm", "rco@budgets.size=1"))
    assert "no configuration is within it: expected one from" in said


def test_front_writes_csv_and_json(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "10")
    document = json.loads(moopt("front", "toy.journal", "--csv", "front.csv", "--json").stdout)
    assert len((folder / "front.csv").read_text().splitlines()) == len(document["front"]) + 1


def test_importance_lists_what_matters_most_first(moopt: Moopt) -> None:
    moopt("run", "toy.py", "--trials", "12", "--storage", "x.journal")
    decisions = json.loads(moopt("importance", "x.journal", "--json").stdout)["decisions"]
    assert [row["decision"] for row in decisions] == ["x", "bits"]
    assert decisions[0]["moves loss by"] > decisions[1]["moves loss by"] > 0
    assert moopt("importance", "x.journal").stdout.split()[:3] == ["toy", "decision", "group"]
    moopt("run", "toy.py", "--trials", "3", "--storage", "y.journal")
    assert "3 completed trials; expected 8 or more" in refused(moopt("importance", "y.journal"))


def test_report_says_where_it_is(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "10")
    assert moopt("report", "toy.journal", "--out", "page.html").stdout == "Wrote page.html\n"
    assert "</html>" in (folder / "page.html").read_text()
    done = json.loads(moopt("report", "toy.journal", "--card", "front", "--json").stdout)
    assert done == {"study": "toy", "report": "report.html", "files": ["report.html"]}
    assert (folder / "report.html").read_text().count("<h2>") == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium: apt-get install chromium")
def test_report_draws_pictures(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "10")
    chosen = ("--card", "front", "--card", "hypervolume", "--width-cm", "8.5")
    done = moopt("report", "toy.journal", "--format", "svg", *chosen)
    assert done.stdout == "Wrote pictures/front.svg\nWrote pictures/hypervolume.svg\n"
    assert 'width="321"' in (folder / "pictures" / "front.svg").read_text()
    moopt("report", "toy.journal", "--out", "toy.md", "--card", "front", "--card", "shipping")
    assert "(toy-pictures/front.png)" in (folder / "toy.md").read_text()
    assert (folder / "toy-pictures" / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "report"), "expected one that ends in .html, .md, .png, .svg, .pdf, or --format"),
        (("--out", "report.html", "--format", "svg"), "leave one of them out"),
        (("--out", "front.svg"), "is one picture: name its card, --card front"),
        (("--card", "fornt"), "no card 'fornt'; it has shipping, front"),
        (("--out", "a.png", "--card", "front", "--width-cm", "1"), "Got a width of 1.0 cm; expected 6 to 60"),
    ],
)
def test_a_report_that_cannot_be_is_refused(moopt: Moopt, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    moopt("run", "toy.py", "--trials", "3")
    assert said in refused(moopt("report", "toy.journal", *arguments))
    assert not list(folder.glob("*.html"))


@pytest.mark.parametrize("command", ["front", "report", "status"])
def test_what_is_no_storage_is_refused(moopt: Moopt, folder: Path, command: str) -> None:
    assert "no storage at absent.journal" in refused(moopt(command, "absent.journal"))
    assert "not a moopt storage" in refused(moopt(command, "toy.py"))


def test_a_storage_with_several_studies_asks_for_one(moopt: Moopt) -> None:
    moopt("run", "toy.py", "--trials", "2")
    moopt("run", "toy.py", "--trials", "2", "--set", "name=second")
    assert "second, toy" in refused(moopt("front", "toy.journal"))
    assert json.loads(moopt("front", "toy.journal", "--study", "second", "--json").stdout)["study"] == "second"
    assert len(json.loads(moopt("status", "toy.journal", "--json").stdout)["studies"]) == 2


def real(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in a process of its own, its output in a pipe."""
    paths = [ROOT, ROOT / "kernels", ROOT / "problems"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "moopt.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_in_a_pipe_everything_is_plain_text(folder: Path) -> None:
    ran = real("run", "toy.py", "--trials", "8")
    assert ran.returncode == 0
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "8 of 8 trials" in ran.stderr
    assert "of 8 trials\n" in ran.stdout


def test_exit_codes_reach_the_shell(folder: Path) -> None:
    assert real("--help").returncode == 0
    assert real("run", "toy.py", "--trials", "0").returncode == 2
    broken = real("front", "absent.journal", "--json")
    assert broken.returncode == 2
    assert broken.stdout == ""
    assert "Traceback" not in broken.stderr


def test_help_names_every_algorithm(folder: Path) -> None:
    said = set(real("run", "--help").stdout.replace(",", " ").split())
    assert said >= {"auto", *NAMES}


def test_help_imports_nothing_heavy(folder: Path) -> None:
    code = "import sys, moopt.cli; print([m for m in ('torch', 'pandas', 'optuna', 'numpy') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_display_shows_lines_in_a_file(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "6")
    history, file, ticks = load_history(folder / "toy.journal"), io.StringIO(), iter(range(1000))
    with Display(6, file, lambda: float(next(ticks))) as watch:
        for event in history.events:
            watch(history, event)
    assert "done: 6 of 6 trials, front of" in file.getvalue()
    assert "600 forward tokens" in file.getvalue()


def test_comparisons_are_at_no_more_than_the_size_of_the_baseline(moopt: Moopt, folder: Path) -> None:
    moopt("run", "toy.py", "--trials", "30")
    history = load_history(folder / "toy.journal")
    for found in comparisons(history):
        size = 1.5 * int(found.baseline.split()[1].removesuffix("-bit"))
        rivals = [t.values["loss"] for t in history.feasible() if t.values["size"] <= size]
        assert found.after == min(rivals) < found.before
