"""Runs a command as a user does."""

import os
import subprocess
import sys


def command(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"distserve.cli.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={
            **{key: value for key, value in os.environ.items() if key != "DATASET"},
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )


def simulate(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return command("simulate", *arguments, **environment)
