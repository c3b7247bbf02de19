"""stderr of a run that may outlive its reader: a terminal is closed or `tee` ends, pods run on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class _Heedless:
    """Writes to a stream until that fails; all the rest, what is buffered too, goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        """What else there is of a stream, such as its encoding."""
        return getattr(self._stream, name)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """While it lasts, nobody who writes to stderr fails by it, rich neither."""
    with contextlib.redirect_stderr(cast(TextIO, _Heedless(sys.stderr))):
        yield
