"""The part of requirements.lock that one image installs, with its hashes; the Dockerfile calls it.

Versions and hashes are said in one place, and an image is built anew only when its own part of
that place changes.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==")


def subset(lock: str, names: Iterable[str]) -> str:
    """The requirements of these names, comments left out; raises ValueError for an unknown one."""
    requirements: dict[str, list[str]] = {}
    name = ""
    for line in lock.splitlines():
        if started := _REQUIREMENT.match(line):
            name = started[1]
        if line.strip() and not line.lstrip().startswith("#"):
            # A name comes once per Python version that its versions differ for.
            requirements.setdefault(name, []).append(line)
    wanted = sorted(set(names))
    if unknown := [each for each in wanted if each not in requirements]:
        raise ValueError(f"requirements.lock has no {', '.join(unknown)}: run `make lock`")
    return "".join(f"{line}\n" for each in wanted for line in requirements[each])


def main(arguments: list[str]) -> int:
    """`subset.py LOCK NAMES...` writes for each file of names one of requirements beside it."""
    lock, *lists = map(Path, arguments)
    for names in lists:
        chosen = subset(lock.read_text(), names.read_text().split())
        names.with_suffix(".lock").write_text(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
