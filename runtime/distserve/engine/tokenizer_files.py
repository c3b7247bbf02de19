"""What a gateway needs of the model's folder to tokenise: files, digests and the chat template."""

import hashlib
import json
from pathlib import Path
from typing import Any

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
    """The template: a file of its own in newer checkpoints, else the tokenizer config's."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    found: Any = json.loads(config.read_bytes()).get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((t["template"] for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None
