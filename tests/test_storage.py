import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import moopt
from moopt.algorithms import NSGA2
from moopt.errors import StorageError, StorageInUse, StudyError
from moopt.storage import Storage
from moopt.testing.landscapes import LEVELS, MIXED, Landscape

ROOT = Path(moopt.__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "moopt.journal"


def run(path: Path, problem: moopt.Problem, trials: int = 30) -> moopt.Study:
    return moopt.Study("s", problem, NSGA2(8), path).run(trials)


def as_optuna_has_it(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.parametrize("space", [LEVELS, MIXED], ids=["levels", "mixed"])
@pytest.mark.parametrize("constraint", [None, "measured", "known"])
def test_optuna_reads_the_same_study(path: Path, space: moopt.Space, constraint: str | None):
    history = run(path, Landscape(space, 2, True, constraint, "flaky")).history  # type: ignore[arg-type]
    study = as_optuna_has_it(path)
    assert study.metric_names == ["f0", "f1"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
    assert {trial.state for trial in history.trials} == {"complete", "failed"}
    for ours, theirs in zip(history.trials, study.trials, strict=True):
        assert theirs.state == states[ours.state]
        assert theirs.params == ours.config
        assert dict(theirs.constraints) == ours.violations
        if ours.state == "complete":
            assert theirs.values == [ours.values["f0"], ours.values["f1"]]
        else:
            assert "nan" in theirs.user_attrs["fail_reason"]
    best = {tuple(trial.values) for trial in study.best_trials}
    assert best == {(trial.values["f0"], trial.values["f1"]) for trial in history.front()}


def test_labels_with_units_are_the_metric_names(path: Path):
    problem = Landscape(LEVELS, 1)
    problem.objectives = [moopt.Objective("f0", unit="MB")]
    run(path, problem, 3)
    assert as_optuna_has_it(path).metric_names == ["f0 [MB]"]


def test_what_is_read_back_is_what_was_found(path: Path):
    written = run(path, Landscape(MIXED, 3, True, "measured", "flaky")).history
    read = moopt.load_history(path)
    assert read.trials == written.trials
    assert read.events == written.events
    assert read.hypervolume() == written.hypervolume()


def test_a_torn_last_line_is_cut_off(path: Path):
    run(path, Landscape(), 10)
    *events, _ = path.read_bytes().splitlines(keepends=True)  # the last one says that the run is over
    torn = b"".join(events)[:-20]
    path.write_bytes(torn)
    assert sum(trial.state == "complete" for trial in moopt.load_history(path).trials) == 9  # watchers only skip it
    assert path.read_bytes() == torn
    history = run(path, Landscape(), 12).history
    assert [trial.state for trial in history.trials] == ["complete"] * 12
    assert history.trials[9].attempts == 2
    assert len(as_optuna_has_it(path).trials) == 12


def test_every_prefix_of_a_journal_can_be_gone_on_with(path: Path):
    straight = run(path, Landscape(behaviour="flaky"), 6).history
    whole = path.read_bytes()
    for size in range(0, len(whole), 397):
        path.write_bytes(whole[:size])
        history = run(path, Landscape(behaviour="flaky"), 6).history
        assert [trial.values for trial in history.trials] == [trial.values for trial in straight.trials], size


@pytest.mark.parametrize("content", ["{\n  'a': 1}\n", '{"a": 1}', "name,value\n", "\x00\x01\n\n"])
def test_another_file_is_refused_and_left_alone(path: Path, content: str):
    path.write_text(content)
    lock = path.with_name("moopt.journal.lock")
    lock.write_text("mine")
    for attempt in (lambda: run(path, Landscape()), lambda: moopt.load_history(path)):
        with pytest.raises(StorageError, match="not a moopt storage"):
            attempt()
    assert path.read_text() == content
    assert lock.read_text() == "mine"


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(StorageError, match="is a folder"):
        run(tmp_path, Landscape())
    with pytest.raises(StorageError, match="no storage at"):
        moopt.load_history(tmp_path / "missing")
    with pytest.raises(StorageError, match="no file that can grow"):
        run(Path("/dev/null"), Landscape())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        run(tmp_path / "file" / "moopt.journal", Landscape())


def test_a_study_of_plain_optuna_is_not_taken_over(path: Path):
    study = optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="not written by moopt"):
        run(path, Landscape())


def test_one_process_owns_a_storage_and_others_may_watch(path: Path):
    run(path, Landscape(), 5)
    code = f"""
from moopt.storage import Storage
Storage({str(path)!r}).open(own=True)
print("owned", flush=True)
input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as owner:  # type: ignore[call-overload]
        assert owner.stdout.readline() == "owned\n"
        study = moopt.Study("s", Landscape(), NSGA2(8), path)
        with pytest.raises(StorageInUse, match=f"in use by the process {owner.pid}"):
            study.run(10)
        assert len(study.history.trials) == len(moopt.load_history(path).trials) == 5
        owner.communicate("\n")
    assert len(study.run(10).history.trials) == 10


def test_a_failed_start_gives_ownership_up(path: Path):
    path.write_text("something else\n")
    with pytest.raises(StorageError):
        run(path, Landscape())
    path.unlink()
    assert len(run(path, Landscape(), 3).history.trials) == 3


def test_watching_writes_nothing(path: Path):
    run(path, Landscape(), 5)
    before = {name: (path.parent / name).stat().st_mtime_ns for name in os.listdir(path.parent)}
    moopt.load_history(path).front()
    moopt.Study("s", Landscape(), NSGA2(8), path).front()
    assert {name: (path.parent / name).stat().st_mtime_ns for name in os.listdir(path.parent)} == before


def test_a_stale_lock_is_removed(path: Path):
    run(path, Landscape(), 3)
    path.with_name("moopt.journal.lock").symlink_to(path)
    assert len(run(path, Landscape(), 5).history.trials) == 5


def test_a_study_that_a_crash_left_without_content_is_begun_anew(path: Path):
    storage = Storage(path)
    storage.open(own=True)
    storage.optuna.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")  # type: ignore[union-attr]
    storage.close()
    assert len(run(path, Landscape(), 3).history.trials) == 3


def test_an_evaluation_that_changes_the_folder_moves_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Moving(Landscape):
        def evaluate(self, config, fidelity):
            os.chdir(tmp_path / "elsewhere")
            return super().evaluate(config, fidelity)

    (tmp_path / "elsewhere").mkdir()
    for location in ("moopt.journal", "sqlite:///moopt.db"):
        monkeypatch.chdir(tmp_path)
        study = moopt.Study("s", Moving(), NSGA2(8), location).run(5)
        assert len(study.history.trials) == 5
        assert study.storage.shown == location
        monkeypatch.chdir(tmp_path)
        assert len(moopt.load_history(location).trials) == 5
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_a_link_to_a_storage_has_the_same_owner(tmp_path: Path, scheme: str):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    owner = Storage(f"{scheme}{link}")
    owner.open(own="s")
    with pytest.raises(StorageInUse):
        Storage(f"{scheme}{file}").open(own="s")
    owner.close()


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_a_journal_that_is_removed_ends_the_run(tmp_path: Path, gone: str):
    path = tmp_path / "folder" / "moopt.journal"

    def remove(history: moopt.History, event: object) -> None:
        if event.job.trial == 3:  # type: ignore[attr-defined]
            path.unlink()
            if gone == "folder":
                shutil.rmtree(path.parent)

    with pytest.raises(StorageError, match=r"Cannot write .*moopt.journal: No such file or directory"):
        moopt.Study("s", Landscape(), NSGA2(8), path).run(9, watch=remove)
    assert not path.exists()


def test_a_child_that_an_evaluation_forks_owns_nothing(path: Path):
    done, leave = os.pipe()
    storage = Storage(path)
    storage.open(own="s")
    if (child := os.fork()) == 0:
        os.close(leave)
        os.read(done, 1)
        os._exit(0)
    storage.close()
    Storage(path).open(own="s")
    os.close(leave)
    os.close(done)
    os.waitpid(child, 0)


def test_a_damaged_line_is_named(path: Path):
    run(path, Landscape(), 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"', b"?", 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match="is damaged in line 5"):
        moopt.load_history(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\udc80", 2**70])
def test_what_python_writes_and_no_json_has_is_read(path: Path, value: object):
    run(path, Landscape(), 3)
    as_optuna_has_it(path).set_user_attr("theirs", value)
    assert len(run(path, Landscape(), 5).history.trials) == 5


@pytest.mark.parametrize("location", [5, b"x", "", "a\0b"])
def test_what_is_no_place_is_refused(location: object):
    with pytest.raises(StorageError, match="expected a path, a database URL, or None"):
        moopt.Study("s", Landscape(), NSGA2(8), location)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_a_refused_storage_is_left_as_it_was(tmp_path: Path, scheme: str):
    readme = tmp_path / "README.md"
    readme.write_text("# a file of another kind, longer than a head\n")
    with pytest.raises(StorageError):
        moopt.Study("s", Landscape(), NSGA2(8), f"{scheme}{readme}").run(3)
    assert os.listdir(tmp_path) == ["README.md"]


@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_watching_what_is_not_there_makes_nothing(tmp_path: Path, scheme: str):
    location = f"{scheme}{tmp_path}/typo"
    with pytest.raises(StorageError, match="no storage at"):
        moopt.load_history(location)
    assert moopt.Study("s", Landscape(), NSGA2(8), location).history.trials == []
    assert os.listdir(tmp_path) == []


def test_several_studies_share_a_storage(path: Path):
    run(path, Landscape(), 3)
    moopt.Study("t", Landscape(), NSGA2(8), path).run(4)
    with pytest.raises(StudyError, match="name one of s, t"):
        moopt.load_history(path)
    assert len(moopt.load_history(path, "t").trials) == 4
    with pytest.raises(StudyError, match="has no study 'u'; it has s, t"):
        moopt.load_history(path, "u")


def test_sqlite_holds_the_same_study(tmp_path: Path):
    history = moopt.Study("s", Landscape(), NSGA2(4), f"sqlite:///{tmp_path}/moopt.db").run(6).history
    read = moopt.load_history(f"sqlite:///{tmp_path}/moopt.db")
    assert [trial.values for trial in read.trials] == [trial.values for trial in history.trials]
