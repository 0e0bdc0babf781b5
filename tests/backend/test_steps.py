"""A long preparation says how far it is: a bar on a terminal, lines elsewhere; a short one says nothing."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from moopt.backend import steps


class Clock:
    """Every look at it finds five seconds gone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 5.0
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_short_one_is_silent(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, "moopt"):
        assert list(steps.steps("abc", "Quantizing")) == ["a", "b", "c"]
    assert not caplog.text
    assert capsys.readouterr().err == ""


def test_a_long_one_logs_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(time, "monotonic", Clock())
    with caplog.at_level(logging.INFO, "moopt"):
        assert list(steps.steps("abcdef", "Quantizing")) == list("abcdef")
    assert [record.getMessage() for record in caplog.records] == ["Quantizing: 2 of 6.", "Quantizing: 5 of 6."]


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(steps, "QUIET", -1.0)
    assert list(steps.steps("abc", "Quantizing")) == ["a", "b", "c"]
    assert "Quantizing" in terminal.getvalue()
