"""Processes of `distserve`, forked from one that has imported what they need.

torch and transformers take seconds of a core to import, and dozens of engines are started here.
That they come up from nothing is seen where `distserve up` starts them, and in pods.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from distserve.cli.main import main
from distserve.wire.parent import PARENT_VARIABLE

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.e2e.preloaded"])


def fork(arguments: Sequence[str], log: Path) -> BaseProcess:
    """`distserve` with these arguments. It ends with this process, however that ends."""
    process = _context.Process(target=_run, args=(list(arguments), log), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], log: Path) -> None:
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.environ[PARENT_VARIABLE] = str(os.getppid())
    sys.exit(main(arguments))
