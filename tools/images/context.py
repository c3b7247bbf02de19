"""What an image is made of, and the key under which it is kept: .dockerignore says which files."""

import hashlib
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TARGETS = ("operator", "gateway", "migrator", "engine")
CHECKOUT = Path(__file__).parents[2]
REPOSITORY = "docker.io/distserve"


@dataclass(frozen=True)
class Context:
    """A checkout as a builder sees it."""

    folder: Path = CHECKOUT
    tag: str = ""
    """Of the images; empty is the version, which pods are rendered with."""

    @property
    def version(self) -> str:
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        return str(project["version"])

    def image(self, target: str) -> str:
        return f"{REPOSITORY}/{target}:{self.tag or self.version}"

    def files(self) -> Iterator[Path]:
        """All files that can have an effect on an image, in a fixed order."""
        rules = (self.folder / ".dockerignore").read_text().split("\n")
        allowed = [self.folder / rule[1:] for rule in rules if rule.startswith("!")]
        for path in sorted([self.folder / "Dockerfile", self.folder / ".dockerignore", *allowed]):
            if path.is_file():
                yield path
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if name != "__pycache__")
                yield from (Path(folder) / name for name in sorted(names) if ".pyc" not in name)

    def copy_to(self, folder: Path) -> "Context":
        """The same files where nobody edits them: a build takes minutes."""
        for path in self.files():
            copy = folder / path.relative_to(self.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        return replace(self, folder=folder)

    def key(self, base: str) -> str:
        """Hash of the base's name, of the tag and of every file."""
        digest = hashlib.sha256(f"{base} {self.tag}".rstrip().encode())
        for path in self.files():
            content = path.read_bytes()
            digest.update(f"\0{path.relative_to(self.folder)}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()[:16]

    def packages_key(self, base: str) -> str:
        """Hash of what decides the layers that cost minutes."""
        digest = hashlib.sha256(base.encode())
        for name in ("requirements.lock", "tools/images/build.lock"):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:12]
