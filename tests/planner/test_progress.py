"""What a search that takes its time tells meanwhile, on a terminal and in a log."""

import io
import time

import pytest

from distserve.planner.commands.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, seconds: int) -> str:
    """Of work that is done eight times a second."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("configurations", 300, stream)
    for _ in range(8 * seconds):
        now[0] += 0.125
        progress.advance()
    progress.close()
    return stream.getvalue()


def test_a_log_has_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(io.StringIO(), monkeypatch, 9) == ""
    said = told(io.StringIO(), monkeypatch, 25).splitlines()
    assert [line.removesuffix("/300 configurations") for line in said] == ["80", "160"]


def test_a_terminal_has_one_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(Terminal(), monkeypatch, 0) == ""
    said = told(Terminal(), monkeypatch, 3)
    assert said.startswith("\r8/300 configurations\r") and said.endswith("\r\033[K")
    assert "\n" not in said
