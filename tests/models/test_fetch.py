"""`distserve fetch-model` against a stub hub, with real processes that are killed and that race."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distserve.cli.main import main
from distserve.models.errors import FetchFailed, FetchRefused
from distserve.models.fetch import Hub, RemoteFile, Snapshot, fetch, needed

Run = Callable[..., "subprocess.Popen[str]"]
SECONDS = 60
WHOLE = "org--model@" + "a" * 40
SERVED = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def run(stub: Any, tmp_path: Path) -> Iterator[Run]:
    started: list[subprocess.Popen[str]] = []

    def start(pin: str = "tiny-1", token: str = "", **flags: str) -> "subprocess.Popen[str]":
        given = {"repository": "org/model", "revision": "main"} | flags
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        environment = os.environ | {"HF_ENDPOINT": stub.url, "HF_HOME": str(tmp_path / "home")}
        process = subprocess.Popen(
            [sys.executable, "-m", "distserve.cli.main", "fetch-model",
             "--cache", str(tmp_path / "cache"), "--pin", pin, *words],
            env=environment | ({"HF_TOKEN": token} if token else {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def done(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out.strip(), err


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def downloads(stub: Any, name: str = "model.safetensors") -> list[int]:
    return [first for asked, first in stub.asked if asked == name]


def test_what_engines_read_is_there_and_nothing_else(stub: Any, run: Run, tmp_path: Path) -> None:
    code, printed, _ = done(run())
    assert (code, printed) == (0, str(tmp_path / "cache" / WHOLE))
    found = {path.name: path.read_bytes() for path in Path(printed).iterdir()}
    assert found == {name: stub.files[name] for name in SERVED}
    assert (tmp_path / "cache" / "pins" / "tiny-1").resolve() == Path(printed)


def test_a_killed_download_goes_on_where_it_was(stub: Any, run: Run, tmp_path: Path) -> None:
    stub.stall_at = 11_000_000
    first = run()
    growing = tmp_path / "cache" / f"{WHOLE}.partial" / "model.safetensors.incomplete"
    until(lambda: growing.exists() and growing.stat().st_size >= 10_000_000)
    first.kill()
    first.wait()
    kept = growing.stat().st_size
    stub.stall_at = None
    code, printed, _ = done(run())
    assert code == 0
    assert downloads(stub) == [0, kept]
    assert len(downloads(stub, "config.json")) == 1
    assert Path(printed, "model.safetensors").read_bytes() == stub.files["model.safetensors"]
    assert [p.name for p in (tmp_path / "cache").glob("org*")] == [WHOLE]


def test_it_ends_when_it_is_told_to(stub: Any, run: Run) -> None:
    """As a container's first process, which the kernel sends no signal without a handler."""
    stub.stall_at = 11_000_000
    process = run()
    until(lambda: bool(downloads(stub)))
    process.terminate()
    assert process.wait(SECONDS) == 128 + signal.SIGTERM


def test_of_two_at_once_one_downloads(stub: Any, run: Run, tmp_path: Path) -> None:
    stub.stall_at = 11_000_000
    first = run()
    until(lambda: bool(downloads(stub)))
    second = run()
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    stub.go.set()
    assert done(first)[:2] == done(second)[:2] == (0, str(tmp_path / "cache" / WHOLE))
    assert downloads(stub) == [0]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_digest_is_never_served(stub: Any, run: Run, tmp_path: Path, name: str) -> None:
    stub.wrong = {name}
    code, printed, error = done(run())
    assert (code, printed) == (1, "")
    assert f"the digest of {name} is not the one that the hub names" in error
    assert not (tmp_path / "cache" / "pins" / "tiny-1").exists(), "an engine would find it"
    assert not (tmp_path / "cache" / f"{WHOLE}.partial" / f"{name}.incomplete").exists()
    stub.wrong = set()
    assert done(run())[0] == 0


def test_one_revision_serves_one_commit(stub: Any, run: Run, tmp_path: Path) -> None:
    """Also where the first pod was killed before it had a file, and where the hub is gone."""
    stub.stall_at = 11_000_000
    first = run()
    until(lambda: bool(downloads(stub)))
    first.kill()
    first.wait()
    stub.stall_at = None
    stub.commits["main"] = "c" * 40
    stub.commits["kept"] = "a" * 40
    assert done(run())[1].endswith("a" * 40)
    assert done(run(pin="tiny-2"))[1].endswith("c" * 40)
    asked = len(stub.asked)
    stub.commits.clear()
    assert done(run())[0] == 0
    assert len(stub.asked) == asked


def test_a_branch_is_taken(run: Run) -> None:
    assert done(run(revision="next"))[1].endswith("b" * 40)


def test_a_token_is_used(stub: Any, run: Run) -> None:
    stub.needs_token = True
    code, _, error = done(run())
    assert code == 2 and "tokenSecretName" in error
    assert done(run(token="hf_secret"))[0] == 0


# ---- without a process --------------------------------------------------------------------------


@pytest.fixture
def hub(stub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The library reads its environment once, when it is imported."""
    from huggingface_hub import close_session

    from distserve.models.hub import HuggingFaceHub

    files = f"{stub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stub.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield HuggingFaceHub(None)
    close_session()


@pytest.mark.parametrize(
    ("repository", "revision", "said"),
    [
        ("org/absent", "main", "there is no repository 'org/absent'"),
        ("org/model", "absent", "org/model has no revision 'absent': name another"),
        ("a b", "main", "check the name"),
    ],
)
def test_what_a_hub_has_not_is_refused(
    hub: Hub, tmp_path: Path, repository: str, revision: str, said: str
) -> None:
    with pytest.raises(FetchRefused, match=said):
        fetch(hub, repository, revision, tmp_path, "x")


def test_a_full_cache_says_what_may_be_deleted(hub: Hub, tmp_path: Path) -> None:
    """Here the disk is full as soon as the weights come."""
    for folder in ("org--old@" + "b" * 40, "org--old@" + "c" * 40, "org--left@1.partial"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "old-1").symlink_to("../org--old@" + "b" * 40)
    partial = tmp_path / f"{WHOLE}.partial"
    partial.mkdir()
    (partial / "model.safetensors.incomplete").symlink_to("/dev/full")
    with pytest.raises(FetchFailed) as full:
        fetch(hub, "org/model", "main", tmp_path, "x")
    said = str(full.value)
    assert said.startswith(f"{tmp_path}: No space left on device: delete in pins/ the pins of")
    assert f"that no pin points to (now: org--left@1.partial, org--old@{'c' * 40})" in said
    assert "or make it larger" in said


def test_a_file_that_hubs_do_not_serve_is_refused_before_any_is_downloaded(
    stub: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 1_000_000)
    stub.files["model-00002-of-00002.safetensors"] = b"a small one"
    with pytest.raises(FetchRefused, match=r"model\.safetensors has .* with smaller shards"):
        fetch(hub, "org/model", "main", tmp_path, "x")
    assert stub.asked == [], "those that come before it would be downloaded in vain"


def test_a_pin_is_a_plain_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--repository", "org/model", "--cache", str(tmp_path), "--pin", "../x"]
    assert main(["fetch-model", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "letters, digits and hyphens" in line


class SmallHub:
    """Each repository has one file, with its own name in it."""

    most_bytes = 1 << 20

    def __init__(self, breaks: bool) -> None:
        self.breaks = breaks

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        digest = hashlib.sha256(repository.encode()).hexdigest()
        file = RemoteFile("model.safetensors", len(repository), digest, "")
        return Snapshot("a" * 40, (file,))

    def download(self, repository: str, commit: str, file: RemoteFile, target: Path) -> None:
        if self.breaks:
            raise FetchFailed("the connection ended")
        target.write_text(repository)


@pytest.mark.parametrize("breaks", [False, True], ids=["whole", "interrupted"])
def test_a_pin_stays_with_its_repository(tmp_path: Path, breaks: bool) -> None:
    hub = SmallHub(breaks)
    with contextlib.suppress(FetchFailed):
        fetch(hub, "org/a", "main", tmp_path, "model")
    hub.breaks = False
    with pytest.raises(FetchRefused, match="pin model is of org/a, not of org/b: give another"):
        fetch(hub, "org/b", "main", tmp_path, "model")
    for repository, pin in (("org/a", "model"), ("org/b", "other")):
        folder = fetch(hub, repository, "main", tmp_path, pin)
        assert (folder / "model.safetensors").read_text() == repository


class EmptyHub:
    most_bytes = 1 << 20

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        return Snapshot("a" * 40, (RemoteFile("pytorch_model.bin", 1, "0", "0"),))

    def download(self, repository: str, commit: str, file: RemoteFile, target: Path) -> None:
        raise AssertionError("nothing of it is needed")


def test_other_weights_than_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchRefused, match="only safetensors weights"):
        fetch(EmptyHub(), "org/model", "main", tmp_path, "x")


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchFailed, match="file"):
        fetch(EmptyHub(), "org/model", "main", tmp_path / "file", "x")


def test_shards_come_with_their_index() -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json", "consolidated.safetensors",
             "original/model.safetensors", "config.json"]  # fmt: skip
    chosen = needed(tuple(RemoteFile(name, 1, None, "") for name in names))
    assert {file.name for file in chosen} == {*names[:3], "config.json"}
