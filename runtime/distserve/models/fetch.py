"""Downloads a model from a Hugging Face hub into a cache that many pods share: the init container.

    cache/
      .locks/ORG--NAME.lock        held by the one that downloads; the others wait for it
      ORG--NAME@COMMIT.partial/    being filled; FILE.incomplete grows, FILE is complete and checked
      ORG--NAME@COMMIT/            renamed when all files are there: what exists is whole
      pins/PIN                     -> ../ORG--NAME@COMMIT

A pin is made once: all pods of one revision serve the commit that `main` was when the first of them
looked, and a pod that comes back needs no hub. It stays with its repository. Nothing is removed
here: which revisions may still come back only people know.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from distserve.models.errors import FetchFailed, FetchRefused

PINS: Final = "pins"
LOCK_SECONDS: Final = 6 * 3600.0
"""Longest wait for another pod's download: of the biggest models over a slow link."""
POLL_SECONDS: Final = 0.5
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a write is answered where there is no room, or no quota."""
_CHUNK_BYTES: Final = 1 << 24
_WEIGHTS: Final = ("model", ".safetensors")
_OTHERS: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    name: str
    size_bytes: int
    sha256: str | None
    """Of its content, where the hub keeps it as a large file."""
    git_blob: str
    """Else git's name for it: the SHA-1 of `blob SIZE\\0` and the content."""


@dataclass(frozen=True)
class Snapshot:
    commit: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """What is asked of a hub (`distserve.models.hub`). Raises FetchRefused or FetchFailed."""

    @property
    def most_bytes(self) -> int:
        """Of a file that it serves over HTTP."""
        ...

    def snapshot(self, repository: str, revision: str) -> Snapshot: ...

    def download(self, repository: str, commit: str, file: RemoteFile, target: Path) -> None:
        """Appends to `target` what it lacks."""
        ...


def fetch(hub: Hub, repository: str, revision: str, cache: Path, pin: str) -> Path:
    """The pinned folder with the model's files, downloaded at most once for all that share `cache`.

    Raises FetchRefused, where trying again does not help, as with another repository's pin, and
    FetchFailed, where it does: what was downloaded so far is kept.
    """
    link = cache / PINS / pin
    try:
        if not _is_whole(link, repository):
            with _locked(cache / ".locks" / f"{_folder(repository)}.lock"):
                _fill(hub, repository, revision, cache, link)
    except OSError as error:
        cure = f": {_cure(cache)}" if error.errno in FULL else ""
        raise FetchFailed(f"{cache}: {error.strerror or error}{cure}") from error
    return link.resolve()


def needed(files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """Those that an engine reads: weights, configuration and tokenizer, in the top folder."""
    first, last = _WEIGHTS
    weights = [f for f in files if f.name.startswith(first) and f.name.endswith(last)]
    if not weights:
        raise FetchRefused(
            "it has no model*.safetensors; only safetensors weights are served: name a revision "
            "or a repository that has them"
        )
    others = [f for f in files if f.name.endswith(_OTHERS)]
    return [f for f in (*others, *weights) if "/" not in f.name]


def _cure(full: Path) -> str:
    """What makes room in a cache."""
    pinned = {link.readlink().name for link in (full / PINS).glob("*") if link.is_symlink()}
    found = sorted(path.name for path in full.glob("*@*"))
    unused = [name for name in found if name.removesuffix(".partial") not in pinned]
    return (
        f"delete in {PINS}/ the pins of revisions that have no pods, then the folders that no pin "
        f"points to (now: {', '.join(unused) or 'none'}); or make it larger"
    )


def _fill(hub: Hub, repository: str, revision: str, cache: Path, link: Path) -> None:
    """Under the lock. A pin that points nowhere was made by one that did not get to the end."""
    if _is_whole(link, repository):
        return
    commit = link.readlink().name.rpartition("@")[2] if link.is_symlink() else revision
    snapshot = hub.snapshot(repository, commit)
    whole = cache / f"{_folder(repository)}@{snapshot.commit}"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("..") / whole.name)
    if whole.is_dir():
        return
    partial = whole.with_name(f"{whole.name}.partial")
    partial.mkdir(exist_ok=True)
    files = needed(snapshot.files)
    _refuse_too_large(hub, f"{repository}@{snapshot.commit}", files)
    for number, file in enumerate(files, 1):
        if not (partial / file.name).is_file():
            _complete(hub, repository, snapshot.commit, file, partial)
        _log.info("%s: %d of %d files", file.name, number, len(files))
    partial.rename(whole)


def _refuse_too_large(hub: Hub, where: str, files: list[RemoteFile]) -> None:
    """Before any is downloaded: the others would fill the cache in vain."""
    for file in files:
        if file.size_bytes > hub.most_bytes:
            raise FetchRefused(
                f"{where}: {file.name} has {file.size_bytes / 1e9:.0f} GB, and files of more than "
                f"{hub.most_bytes / 1e9:.0f} GB are not served over HTTP: name a repository with "
                "smaller shards"
            )


def _is_whole(link: Path, repository: str) -> bool:
    """Whether the pinned folder is there. Raises FetchRefused where it is another repository's."""
    if link.is_symlink():
        pinned = link.readlink().name.rpartition("@")[0]
        if pinned != _folder(repository):
            raise FetchRefused(
                f"pin {link.name} is of {pinned.replace('--', '/')}, not of {repository}: "
                "give another --pin"
            )
    return link.exists()


def _complete(hub: Hub, repository: str, commit: str, file: RemoteFile, folder: Path) -> None:
    growing = folder / f"{file.name}.incomplete"
    if growing.is_file() and growing.stat().st_size > file.size_bytes:
        growing.unlink()
    hub.download(repository, commit, file, growing)
    if not _is(growing, file):
        growing.unlink()
        raise FetchFailed(
            f"{repository}@{commit}: the digest of {file.name} is not the one that the hub names; "
            "it was removed and is downloaded anew at the next start. If that repeats, a proxy or "
            "a mirror between changes it"
        )
    growing.rename(folder / file.name)


def _is(path: Path, file: RemoteFile) -> bool:
    if file.sha256 is not None:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
        os.fsync(content.fileno())
    return digest.hexdigest() == (file.sha256 or file.git_blob)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Ends with the process that holds it, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FetchFailed(
                        f"{path} is held for {LOCK_SECONDS / 3600:.0f} hours: look at the other "
                        "pods of this cache"
                    ) from None
                if not waiting:
                    _log.info("another pod downloads %s: waiting for it", path.stem)
                waiting = True
                time.sleep(POLL_SECONDS)
        yield


def _folder(repository: str) -> str:
    return repository.replace("/", "--")
