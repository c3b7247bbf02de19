"""Where the machine's programs are: whoever looks for one and whoever starts it must agree."""

import os
from collections.abc import Mapping

ROOTS = "/usr/sbin:/sbin"
"""Of root's programs; Debian keeps them out of other users' PATH, and `su` out of root's."""


def search_path(environment: Mapping[str, str] = os.environ) -> str:
    return ":".join(filter(None, (environment.get("PATH"), ROOTS)))
