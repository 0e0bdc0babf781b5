"""Studies in a real PostgreSQL server and in SQLite."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

import moopt
from moopt.algorithms import NSGA2
from moopt.errors import StorageError, StorageInUse
from moopt.history import Event, History
from moopt.storage import Storage
from moopt.testing.landscapes import MIXED, Landscape


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'moopt.db'}"


def study(url: str | None, behaviour: str = "flaky", **arguments: Any) -> moopt.Study:
    problem = Landscape(MIXED, 2, True, "measured", behaviour)  # type: ignore[arg-type]
    return moopt.Study("s", problem, NSGA2(8), url, **arguments)


def told(history: History) -> list[Any]:
    return [(e.seq, e.job, e.outcome) for e in history.events]


@pytest.mark.parametrize("kind", ["url", "sqlite"])
def test_a_database_holds_what_a_journal_holds(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    location = request.getfixturevalue(kind)
    ours, theirs = (study(place).run(30).history for place in (location, str(tmp_path / "moopt.journal")))
    read = moopt.load_history(location)
    assert told(read) == told(ours) == told(theirs)
    assert [t.values for t in read.trials] == [t.values for t in theirs.trials]
    assert [t.violations for t in read.trials] == [t.violations for t in theirs.trials]
    assert [t.config for t in read.front()] == [t.config for t in theirs.front()]


@pytest.mark.parametrize("kind", ["url", "sqlite"])
def test_optuna_reads_the_same_study(kind: str, request: pytest.FixtureRequest):
    location = request.getfixturevalue(kind)
    history = study(location).run(20).history
    storage = optuna.storages.RDBStorage(location.replace("postgresql://", "postgresql+psycopg://"))
    stored = optuna.load_study(study_name="s", storage=storage)
    assert stored.metric_names == ["f0", "f1"]
    assert [d.name for d in stored.directions] == ["MINIMIZE", "MAXIMIZE"]
    for mine, theirs in zip(history.trials, stored.trials, strict=True):
        assert theirs.number == mine.number
        assert theirs.params == mine.config
        assert dict(theirs.constraints) == mine.violations
        assert theirs.state.name == {"complete": "COMPLETE", "failed": "FAIL"}[mine.state]
        assert theirs.values == ([mine.values["f0"], mine.values["f1"]] if mine.state == "complete" else None)
    best = {tuple(trial.values) for trial in stored.best_trials}
    assert best == {(trial.values["f0"], trial.values["f1"]) for trial in history.front()}
    storage.engine.dispose()


@pytest.mark.parametrize("kind", ["url", "sqlite"])
def test_a_study_goes_on_where_it_stopped(kind: str, request: pytest.FixtureRequest):
    location = request.getfixturevalue(kind)
    study(location).run(12)
    resumed = study(location).run(24).history
    assert told(resumed) == told(study(None).run(24).history)


@pytest.mark.parametrize("kind", ["url", "sqlite"])
def test_one_coordinator_at_a_time_and_watchers_any_time(kind: str, request: pytest.FixtureRequest):
    location = request.getfixturevalue(kind)
    refused: list[str] = []

    def intrude(history: History, event: Event) -> None:
        if event.job.trial == 3 and not refused:
            with pytest.raises(StorageInUse, match="Watching") as found:
                study(location).run(20)
            refused.append(str(found.value))
            assert len(moopt.load_history(location).trials) == 4

    study(location).run(8, watch=intrude)
    assert refused
    assert len(study(location).run(9).history.trials) == 9


@pytest.mark.parametrize("kind", ["url", "sqlite"])
def test_others_see_whether_a_run_goes_on(kind: str, request: pytest.FixtureRequest):
    location, seen = request.getfixturevalue(kind), []

    def look(history: History, event: Event) -> None:
        opened = Storage(location)
        opened.open()
        seen.append(opened.runs(opened.find("s").history()))  # type: ignore[union-attr]

    last = study(location).run(3, watch=look).history
    assert seen == [True] * 3
    opened = Storage(location)
    opened.open()
    assert opened.runs(last) is False
    del last.pulse["ended"]  # type: ignore[attr-defined]
    assert opened.runs(last) is False  # as if it had been killed


def test_two_studies_of_one_database_run_at_a_time(url: str):
    def other(history: History, event: Event) -> None:
        if event.job.trial == 2:
            moopt.Study("other", Landscape(), NSGA2(8), url).run(4)

    study(url).run(5, watch=other)
    assert len(moopt.load_history(url, "other").trials) == 4


def test_a_run_waits_for_a_server_that_restarts_and_says_so(server: Any, url: str, caplog: pytest.LogCaptureFixture):
    def restart(history: History, event: Event) -> None:
        if event.job.trial == 5:
            server.stop()
            threading.Timer(1.0, server.start).start()

    with caplog.at_level(logging.WARNING, "moopt"):
        found = study(url).run(16, watch=restart).history
    said = [record.getMessage() for record in caplog.records]
    assert sum("does not answer" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1
    assert told(moopt.load_history(url)) == told(found) == told(study(None).run(16).history)


def test_a_coordinator_that_was_replaced_while_it_was_cut_off_stops(url: str):
    def replaced(history: History, event: Event) -> None:
        if event.job.trial == 5:
            engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
            with engine.connect() as other:
                other.execute(
                    sqlalchemy.text("UPDATE study_user_attributes SET value_json = '99' WHERE key = 'moopt:epoch'")
                )
                other.execute(
                    sqlalchemy.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
                other.commit()
            engine.dispose()

    with pytest.raises(StorageInUse, match="took over"):
        study(url).run(16, watch=replaced)
    assert len(moopt.load_history(url).trials) <= 7


@pytest.fixture
def cut(url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The database through a proxy, and what drops its connections on the client's side alone."""
    place = sqlalchemy.make_url(url)
    behind = f"{place.query['host']}/.s.PGSQL.{place.port or 5432}"
    front, clients, servers = socket.create_server(("127.0.0.1", 0)), list[socket.socket](), list[socket.socket]()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                clients.append(front.accept()[0])
                servers.append(socket.socket(socket.AF_UNIX))
                servers[-1].connect(behind)
                for ends in ((clients[-1], servers[-1]), (servers[-1], clients[-1])):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    def drop() -> None:
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=serve, daemon=True).start()
    port = front.getsockname()[1]
    yield f"postgresql://{place.username}@127.0.0.1:{port}/{place.database}", drop
    front.shutdown(socket.SHUT_RDWR)
    for end in (front, *clients, *servers):
        end.close()


def test_a_connection_that_only_the_client_sees_dropped_is_made_again(
    cut: tuple[str, Callable[[], None]], caplog: pytest.LogCaptureFixture
):
    through, drop = cut

    def lose(history: History, event: Event) -> None:
        if event.job.trial == 5:
            drop()

    found = study(through).run(12, watch=lose).history
    assert "answers again" in caplog.text
    assert told(found) == told(study(None).run(12).history)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("postgresql://someone:secret@127.0.0.1:1/none", "Cannot open"),
        ("oracle://someone:secret@host/none", "Cannot open"),
        ("nonsense://", "Cannot"),
        ("sqlite:////proc/nowhere/moopt.db", "Cannot"),
    ],
)
def test_what_cannot_be_opened_is_said_without_the_password(location: str, message: str):
    with pytest.raises(StorageError, match=message) as found:
        study(location).run(2)
    assert "secret" not in str(found.value)


def test_the_password_is_never_shown():
    assert "secret" not in Storage("postgresql://someone:secret@host/name").shown


def test_optuna_dashboard_serves_a_study(url: str, tmp_path: Path):
    history = study(url).run(12).history
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "optuna-dashboard"
    place = url.replace("postgresql://", "postgresql+psycopg://")
    with subprocess.Popen([program, place, "--port", str(port), "--host", "127.0.0.1"], env=dict(os.environ)) as served:
        try:

            def get(path: str) -> Any:
                deadline = time.monotonic() + 60
                while True:
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                            return json.loads(answer.read())
                    except urllib.error.URLError:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)

            (summary,) = get("/api/studies")["study_summaries"]
            assert summary["study_name"] == "s"
            found = get(f"/api/studies/{summary['study_id']}?after=0")
        finally:
            served.terminate()
    assert found["objective_names"] == ["f0", "f1"]
    assert [t["state"] for t in found["trials"]] == [
        "Complete" if t.feasible or t.values else "Fail" for t in history.trials
    ]
    shown = [t.get("values") for t in found["trials"]]
    assert shown == [[t.values["f0"], t.values["f1"]] if t.values else None for t in history.trials]
