"""Why a deployment cannot be rendered.

RenderError
├── MergeError    a podTemplate takes away what the processes need, or cannot be read
└── NoPlan        nothing meets the SLO with what may be used
"""


class RenderError(Exception):
    """The message is one line that names the field and the cure."""


class MergeError(RenderError):
    pass


class NoPlan(RenderError):
    """The message has the nearest miss with its numbers."""
