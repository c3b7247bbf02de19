"""Builds images into archives that are named by what they are made of.

    <cache>/distserve/images/archives/<target>-<key>.tar     imported by clusters
    <cache>/distserve/images/base-<key>.tar                  where the base is of our own making
    <cache>/distserve/images/layers-<key>/                   buildah's storage, one per lock

An archive that is there is current: the key is the hash of all that it was made of.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.cluster.home import cache, lock_file
from tools.cluster.progress import Progress
from tools.images import builders
from tools.images.archive import write_archive
from tools.images.base import LocalBase
from tools.images.context import TARGETS, Context

LOCK_SECONDS = 3600.0
_LAYOUT = "layout-"
KEPT = 2
"""Archives per target, and storages: two checkouts do not throw out each other's."""
IN_USE_SECONDS = 3600.0
"""What was asked for since then may be read just now."""


def archives(
    targets: Sequence[str] = ("operator", "gateway", "migrator"),
    progress: Progress | None = None,
    *,
    base: str = "",
    context: Context | None = None,
) -> dict[str, Path]:
    """The archive of each target, current with the checkout; what is missing is built.

    `Cluster.load_image` takes them; the images' names are those that rendered pods have. Raises
    Unavailable where nothing here can build, CommandFailed with the builder's last words.
    """
    context, progress = context or Context(), progress or Progress()
    folder = cache() / "images"
    wanted = _names(folder, targets, context, base)
    if all(path.exists() for path in wanted.values()):
        for path in wanted.values():
            os.utime(path)
        return wanted
    (folder / "archives").mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock, tempfile.TemporaryDirectory() as copied:
        lock_file(lock, "another process that builds images", LOCK_SECONDS)
        _remove_remains(folder)
        still = context.copy_to(Path(copied))
        wanted = _names(folder, targets, still, base)
        packages_key = still.packages_key(base or LocalBase(folder).name)
        builder = builders.choose(folder, packages_key, base, progress)
        with contextlib.closing(builder):
            for target, archive in wanted.items():
                if not archive.exists():
                    _build(builder, still, target, archive, progress)
        _remove_old(folder)
    return wanted


def _names(folder: Path, targets: Sequence[str], context: Context, base: str) -> dict[str, Path]:
    key = context.key(base or LocalBase(folder).name)
    return {target: folder / "archives" / f"{target}-{key}.tar" for target in targets}


def _build(
    builder: builders.Builder, context: Context, target: str, archive: Path, progress: Progress
) -> None:
    with progress.step(f"image {target}") as step:
        builder.build(context, target, step)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=_LAYOUT) as folder:
            layout = Path(folder) / "layout"
            layout.mkdir()
            builder.export(context.image(target), layout)
            write_archive(layout, context.image(target), archive)


def _remove_remains(folder: Path) -> None:
    """Removes what a build that was killed left; needs the lock."""
    for left in (*(folder / "archives").glob(f"{_LAYOUT}*"), *folder.glob("layers-*/tmp/*")):
        shutil.rmtree(left, ignore_errors=True)
    for left in (folder / "archives").glob("*.new"):
        left.unlink()


def _remove_old(folder: Path) -> None:
    """Keeps the newest few of each kind, and what may be in use."""
    for target in TARGETS:
        for old in _oldest(folder / "archives", f"{target}-*.tar"):
            old.unlink()
    for old in _oldest(folder, "layers-*"):
        builders.Buildah(old, base="").remove()


def _oldest(folder: Path, pattern: str) -> list[Path]:
    newest_first = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    long_ago = time.time() - IN_USE_SECONDS
    return [path for path in newest_first[KEPT:] if path.stat().st_mtime < long_ago]
