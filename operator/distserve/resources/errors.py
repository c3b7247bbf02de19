"""Why a deployment cannot be rendered.

RenderError
└── MergeError    a podTemplate takes away what the processes need
"""


class RenderError(Exception):
    """The message is one line that names the field and the cure."""


class MergeError(RenderError):
    pass
