"""Manifests that come with a program: files of the pinned Go module that it is built from."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tools.cluster.binaries import Program
from tools.cluster.waiting import run

DOWNLOAD_SECONDS = 300.0


def module_files(program: Program, module: str, names: Iterable[str]) -> list[Path]:
    """Files of the module, by their paths in it; kept beside the program."""
    kept = {name: program.built.with_name(Path(name).name) for name in names}
    if not all(target.exists() for target in kept.values()):
        with tempfile.TemporaryDirectory() as folder:
            command = ["go", "-C", str(program.source), "mod", "download", "-modcacherw", "-json"]
            env = {"GOPATH": folder, **os.environ}
            said = run([*command, module], env=env, seconds=DOWNLOAD_SECONDS)
            for name, target in kept.items():
                shutil.copy(Path(json.loads(said)["Dir"]) / name, target)
    return list(kept.values())
