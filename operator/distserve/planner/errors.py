"""What can go wrong in planning; every message ends with what to do.

PlannerError
 |- NoProfile          nothing is known about the step times of this model here
 |- OversizedRequest   a request that no instance of this configuration can hold
 |- InvalidProfile     a profile or network file that does not hold one
 `- InvalidRequest     a question that contradicts itself
"""


class PlannerError(ValueError):
    """Planning cannot go on; the message says what to change."""


class NoProfile(PlannerError):
    """No step times for this model at this tensor parallel degree on this hardware."""


class OversizedRequest(PlannerError):
    """A prompt or context longer than the configuration can hold."""


class InvalidProfile(PlannerError):
    """A hardware profile, profile database or network table that cannot be read."""


class InvalidRequest(PlannerError):
    """A planning request whose parts contradict each other."""
