"""What memory there is and how to give some back; asked at start-up, by pool and runner."""

import contextlib
import ctypes
from pathlib import Path

from distserve.engine.errors import PoolMemoryError

_CGROUPS = (  # version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_bytes() -> int:
    """What can still be allocated: the machine's available memory, or the cgroup's if less."""
    found = [_meminfo_bytes()]
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not this version, or "max"
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found))


def give_back_free_memory() -> None:
    """Have the C library return what loading and warm-up freed: it keeps it for itself otherwise.
    Does nothing where it is not glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _meminfo_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise PoolMemoryError("/proc/meminfo does not say what memory is available: mount /proc")
