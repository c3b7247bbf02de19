"""What a gateway needs of the model's folder to tokenise: files, digests and the chat template."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distserve.engine.errors import ModelError

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of those files that the folder has. No other file is handed out."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in NAMES
        if (folder / name).is_file()
    }


def chat_template(folder: Path) -> str | None:
    """The template: a file of its own in newer checkpoints, else the tokenizer config's. Raises
    ModelError."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    file = own if own.is_file() else config
    if not file.is_file():
        return None
    try:
        return own.read_text() if file == own else _of_config(config)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} has no chat template that can be read ({error}): copy the model anew"
        ) from error


def _of_config(file: Path) -> str | None:
    found: Any = json.loads(file.read_bytes()).get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((t["template"] for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None
