"""Where the machine's programs are: whoever looks for one and whoever starts it must agree."""

import os

ROOTS = "/usr/sbin:/sbin"
"""Of root's programs; Debian keeps them out of other users' PATH, and `su` out of root's."""


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{ROOTS}"
