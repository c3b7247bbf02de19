"""What can go wrong with the shipped, the made and the fetched models.

ModelsError
 |- UnknownBuiltinModel      a name that no shipped model has
 |- ImpossibleShape          sizes that no model of the family can have
 |- FetchRefused             a hub has not what was asked for, or not for us
FetchFailed                  a download did not get to its end: try again
"""

from collections.abc import Iterable


class ModelsError(ValueError):
    """Base of this package's errors; all are mistakes in what was asked for."""


class UnknownBuiltinModel(ModelsError):
    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"no model named {name!r} ships with distserve; the shipped ones are: "
            f"{', '.join(known)}. For a model of your own give its folder instead"
        )


class ImpossibleShape(ModelsError):
    """Sizes that do not fit together; the message says which to change."""


class FetchRefused(ModelsError):
    """Trying again does not help; the message says what to change."""


class FetchFailed(Exception):
    """Trying again goes on where it ended."""
