"""The private folder of one runner, and the removal of those that dead runners left.

A runner holds a lock on a file in its folder for as long as it lives, also when it is killed.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "distserve-up-"
_LOCK = "lock"


@contextlib.contextmanager
def run_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that only this user can enter; removed at the end.

    In /tmp where TMPDIR would make the paths of Unix sockets in it too long (107 bytes).
    """
    base = parent or _base()
    remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_abandoned(base: Path) -> None:
    """Remove this user's run directories whose runner is gone."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _base() -> Path:
    wanted = Path(tempfile.gettempdir())
    return wanted if len(str(wanted)) <= 40 else Path("/tmp")
