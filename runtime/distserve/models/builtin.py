"""The models that ship inside the package, so that samples, tests and the demo need no download.

The engine resolves `model.source.builtin` here; the local runner and the tests use it directly.
"""

from pathlib import Path

from distserve.models.errors import UnknownBuiltinModel

_FOLDER = Path(__file__).parent

# Each name is a folder beside this file, complete for transformers' `from_pretrained`.
BUILTIN_MODELS = ("tiny",)

# What `tiny` continues, greedily, with a sentence that ends.
DEMO_PROMPTS = (
    "Return the",
    "A class that",
    "Base class for",
    "Raise an exception",
    "Wait until",
    "The first argument",
)
# What it answers in a chat, likewise; it has learnt these by heart.
DEMO_QUESTIONS = (
    "What does os.path.join do?",
    "What does len do?",
    "What is the json module for?",
    "What is the textwrap module for?",
    "What does asyncio.sleep do?",
    "What does time.sleep do?",
)


def builtin_path(name: str) -> Path:
    """The folder of a shipped model.

    Raises UnknownBuiltinModel when no model of that name ships.
    """
    if name not in BUILTIN_MODELS:
        raise UnknownBuiltinModel(name, BUILTIN_MODELS)
    return _FOLDER / name
