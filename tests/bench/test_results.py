"""A run's files belong together, whenever writing them ends."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from distserve.bench.results import trusted
from distserve.bench.writing import write_together

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("written", range(4))
def test_records_never_lie_beside_another_run_s_verdict(
    bench: Run,
    late_run: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    late_run()
    first = (tmp_path / "sys-5-100.exp").read_bytes()
    replace, done = os.replace, list[str]()

    def until_full(old: Path, new: Path) -> None:
        if len(done) == written:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(str(new))
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", until_full)
        code, _, err = bench()
        assert code == (0 if written == 3 else 2)
        if written < 3:
            assert "No space left on device; mend that and run again" in err.splitlines()[-1]
            assert not list(tmp_path.glob(".*.part"))
    exp = tmp_path / "sys-5-100.exp"
    assert exp.exists() == (written == 3)
    if exp.exists():
        assert exp.read_bytes() != first
        assert json.loads((tmp_path / "sys-5-100.run.json").read_text())["valid"]
    code, _, err = bench()
    assert code == 0 and ("kept" in err) == (written == 3)


@pytest.mark.parametrize("limit", ["60s", "0ms"], ids=["good before", "invalid before"])
def test_a_full_disk_takes_no_earlier_run_away(
    bench: Run,
    late_run: Callable[[], Path],
    tmp_path: Path,
    no_room: Callable[[], AbstractContextManager[None]],
    limit: str,
) -> None:
    if limit == "0ms":
        late_run()
    else:
        assert bench()[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with no_room():
        code, _, err = bench("--max-lag", "0ms")
    assert code == 2 and "cannot be written: File too large; mend that" in err
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    for name in ("sys-5-100.exp", "sys-5-100.csv"):
        assert after[name] == before[name]
    told, then = (json.loads(of["sys-5-100.run.json"]) for of in (after, before))
    assert then == {name: value for name, value in told.items() if name != "tried"}
    assert ("kept" in bench()[2]) == (limit == "60s")


def test_a_linked_file_stays_a_link_when_it_is_made_anew(tmp_path: Path) -> None:
    """Results that were moved to another disk."""
    real, link = tmp_path / "disk.exp", tmp_path / "run.exp"
    real.write_text("old")
    link.symlink_to(real)
    write_together({link: "new"}, [link], "make room")
    assert link.is_symlink() and link.read_text() == real.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.exp", "run.exp"]


@pytest.mark.parametrize(("lost", "stays"), [(0, True), (2, True), (3, False)])
def test_a_run_that_lost_its_server_answers_nothing(lost: int, stays: bool) -> None:
    """An overloaded one may refuse a connection or two of a hundred."""
    about = {"complete": True, "valid": True, "requests": 200, "completed": 150}
    failures = {"connection lost: reset": lost, "HTTP 503: overloaded": 48}
    assert trusted(about | {"failures": failures}) is stays
