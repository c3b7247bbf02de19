"""What memory there is and how to give some back; asked at start-up, by pool and runner."""

import contextlib
import ctypes
from pathlib import Path

from distserve.engine.errors import PoolMemoryError

_CGROUPS = Path("/sys/fs/cgroup")
_FILES = (  # version 2, version 1: its limit, what is used, and what of that is files' pages
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(cgroups: Path = _CGROUPS) -> int:
    """What can still be allocated: the machine's available memory, or the cgroup's if less.

    Pages of files that were read are used memory to a cgroup, but the kernel drops them when more
    is asked for. Once a model is loaded they are its whole checkpoint.
    """
    found = [_meminfo_bytes()]
    for limit, used, droppable in _FILES:
        with contextlib.suppress(OSError, ValueError):  # not this version, or "max"
            limit_bytes = int((cgroups / limit).read_text())
            used_bytes = int((cgroups / used).read_text())
            stat = (cgroups / limit).with_name("memory.stat")
            found.append(limit_bytes - used_bytes + _droppable_bytes(stat, droppable))
    return max(0, min(found))


def give_back_free_memory() -> None:
    """Have the C library return what loading and warm-up freed: it keeps it for itself otherwise.
    Does nothing where it is not glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _droppable_bytes(stat: Path, name: str) -> int:
    """Of lines that are a name and a number each; 0 where it cannot be read: the limit holds."""
    with contextlib.suppress(OSError, ValueError):
        for line in stat.read_text().splitlines():
            field, _, value = line.partition(" ")
            if field == name:
                return int(value)
    return 0


def _meminfo_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise PoolMemoryError("/proc/meminfo does not say what memory is available: mount /proc")
