"""Reads manifests: YAML to deployments, and mistakes to one line that names field and cure."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distserve.api.deployment import DistServeDeployment
from distserve.api.labels import API_VERSION, KIND

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ManifestError(Exception):
    """A manifest cannot be used; the message is one line, starts with the file and says why."""


@dataclass(frozen=True)
class Manifest:
    """What a file holds. It is read once: what comes by a pipe is not there a second time."""

    path: Path
    documents: tuple[Any, ...]
    """Whatever YAML says, not objects alone."""

    def deployment(self, name: str | None = None) -> DistServeDeployment:
        """The deployment; `name` says which when there are several. Raises ManifestError."""
        deployments = self.deployments()
        names = [d.name for d in deployments]
        if name is not None:
            if name not in names:
                raise ManifestError(f"{self.path}: no {KIND} {name!r}; there is {', '.join(names)}")
            return deployments[names.index(name)]
        if len(deployments) > 1:
            several = f"{len(names)} deployments ({', '.join(names)})"
            raise ManifestError(f"{self.path}: {several}: name one")
        return deployments[0]

    def deployments(self) -> list[DistServeDeployment]:
        """All of them, one at least; documents of other kinds are left out. Raises
        ManifestError."""
        found = [d for d in self.documents if isinstance(d, dict) and d.get("kind") == KIND]
        if not found:
            raise ManifestError(
                f"{self.path}: no document of kind {KIND} (apiVersion {API_VERSION})"
            )
        deployments = [parse_deployment(document, str(self.path)) for document in found]
        names = [d.name for d in deployments]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ManifestError(f"{self.path}: metadata.name {twice!r} is there twice: rename one")
        return deployments


def load_deployment(path: Path, name: str | None = None) -> DistServeDeployment:
    """`Manifest.deployment` of a file."""
    return read_manifest(path).deployment(name)


def load_deployments(path: Path) -> list[DistServeDeployment]:
    """`Manifest.deployments` of a file."""
    return read_manifest(path).deployments()


def read_manifest(path: Path) -> Manifest:
    """Raises ManifestError for what cannot be read and what is no YAML."""
    try:
        documents = tuple(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise ManifestError(f"{path}: {reason}") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: {_yaml_reason(error)}") from None
    return Manifest(path, documents)


def parse_deployment(document: dict[str, Any], origin: str) -> DistServeDeployment:
    """Raises ManifestError for the first mistake, unknown fields first: they cause the others."""
    try:
        return DistServeDeployment.model_validate(document)
    except ValidationError as error:
        mistakes = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ManifestError(f"{origin}: {_line(mistakes[0])}{more}") from None


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "no valid YAML"
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"no valid YAML{where}: {problem}" if problem != "no valid YAML" else problem


def _line(mistake: Any) -> str:
    path = _path(mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = _field_names(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{path}: unknown field; {cure}"
    if mistake["type"] == "missing":
        return f"{path}: missing; it is required"
    message = str(mistake["msg"]).removeprefix("Value error, ")
    given = mistake["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{path}: {message[:1].lower()}{message[1:]}{shown}".removeprefix(": ")


def _path(location: Iterable[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.lstrip(".")


def _field_names(location: Iterable[int | str]) -> list[str]:
    """Names that the object at a place may have."""
    model: type[BaseModel] = DistServeDeployment
    for part in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if not isinstance(part, str) or part not in fields:
            continue
        annotation = fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
