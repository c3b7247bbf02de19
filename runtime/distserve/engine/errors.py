"""Errors of the engine: one tree, every message holds its cure.

EngineError
 |- ModelError        the model folder cannot be served (start-up, exit code 2)
 |- PoolMemoryError   the KV pool does not fit into memory (start-up, exit code 2)
 `- ParallelismError  ranks that this build cannot run (start-up, exit code 2)
"""


class EngineError(Exception):
    """The message is one line and says what to do."""


class ModelError(EngineError):
    """The model folder is missing, incomplete or of a kind that is not served."""


class PoolMemoryError(EngineError):
    """The KV pool does not fit into this machine's (or container's) memory, or is too small."""


class ParallelismError(EngineError):
    """The model cannot be split over these ranks, or this build cannot run them."""
