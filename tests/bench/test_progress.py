"""What a terminal shows meanwhile."""

import io

from distserve.bench.outcome import Outcome
from distserve.bench.progress import Counting, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def outcome(failure: str | None) -> Outcome:
    return Outcome(0, 1, 1, 0.0, 0.0, 0.0, failure=failure)


def test_progress_is_for_terminals() -> None:
    screen, pipe = Terminal(), io.StringIO()
    for stream in (screen, pipe):
        progress = Progress("sys 4-1", 4, 90.0, stream, Clock())
        progress.ended(outcome("HTTP 429"))
        progress.beat()
        progress.close()
    assert "sys 4-1" in screen.getvalue()
    assert "1/4, 1 failed, 90 s of arrivals left" in screen.getvalue()
    assert pipe.getvalue() == ""


def test_it_goes_on_where_nothing_ends() -> None:
    screen, clock = Terminal(), Clock()
    progress = Progress("sys 4-1", 4, 50.0, screen, clock)
    for seconds in (0.0, 0.1, 20.0, 40.0):
        clock.now = 100.0 + seconds
        progress.beat()
    lines = screen.getvalue().split("\r")[1:]
    assert [line.rpartition(", ")[2] for line in lines] == [
        f"{left} s of arrivals left" for left in (50, 30, 10)
    ]
    clock.now = 200.0
    progress.beat()
    assert screen.getvalue().endswith("0/4, the last answers come")


def test_what_has_no_known_end_is_counted() -> None:
    screen, clock = Terminal(), Clock()
    counting = Counting("cnn", "requests", screen, clock)
    for seconds in (0.0, 0.1, 0.3):
        clock.now = 100.0 + seconds
        counting.one()
    lines = screen.getvalue().split("\r\033[K")[1:]
    assert lines == ["cnn: 1 requests", "cnn: 3 requests"]
