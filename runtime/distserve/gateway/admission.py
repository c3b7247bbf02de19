"""How much may come, and wait: beyond the bounds a client hears so at once."""

import contextlib
from collections.abc import Callable, Iterator

from distserve.gateway.errors import BadRequest, Overloaded

BODY_BYTES_PER_TOKEN = 16
"""An id has up to seven digits; a token some four characters, or one that JSON escapes with 12."""
LEAST_BODY_BYTES = 8 << 20
"""Batches of many short prompts, with any context."""


def body_bound(most_bytes: int, context: int) -> int:
    """What a body may have, given the tokens of a prompt: it is parsed on the event loop."""
    return min(most_bytes, max(LEAST_BODY_BYTES, BODY_BYTES_PER_TOKEN * context))


class Ticket:
    """One prompt that waits for its first token."""

    def __init__(self, admission: "Admission") -> None:
        self._admission: Admission | None = admission

    def leave(self) -> None:
        """It got its first token, or ended. Idempotent."""
        if self._admission is not None:
            self._admission.waiting -= 1
            self._admission = None


class Admission:
    """Counts prompts from their arrival to their first token."""

    def __init__(self, bound: Callable[[], int], retry_after_seconds: Callable[[], int]) -> None:
        """`bound` may change at any time; who was admitted stays so."""
        self._bound = bound
        self._retry_after_seconds = retry_after_seconds
        self.waiting = 0

    @contextlib.contextmanager
    def admitting(self, prompts: int) -> Iterator[list[Ticket]]:
        """A place for what is still to be tokenised, so that this too is bounded. It is kept
        where the block ends well. Raises as `admit`."""
        tickets = self.admit(prompts)
        try:
            yield tickets
        except BaseException:
            for ticket in tickets:
                ticket.leave()
            raise

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """A place for a text that is only tokenised. Raises as `admit`."""
        with self.admitting(1) as [ticket]:
            yield
        ticket.leave()

    def admit(self, prompts: int) -> list[Ticket]:
        """All of a request's prompts or none. Raises Overloaded, or BadRequest for a batch that
        could never be admitted."""
        bound = self._bound()
        if prompts > bound > 0:
            raise BadRequest(
                f"a batch of {prompts} prompts is more than the {bound} that may wait: "
                "send it in parts",
                param="prompt",
            )
        self.check_room(prompts)
        self.waiting += prompts
        return [Ticket(self) for _ in range(prompts)]

    def refuse_body(self) -> None:
        """Raises Overloaded."""
        raise Overloaded(
            "the requests that are being read are too large together: try again later",
            retry_after_seconds=self._retry_after_seconds(),
        )

    def check_room(self, prompts: int = 1) -> None:
        """Whether so many could be admitted now. Raises Overloaded."""
        bound = self._bound()
        if self.waiting + prompts > bound:
            raise Overloaded(
                f"{self.waiting} requests are waiting, the bound is {bound}: try again later",
                retry_after_seconds=self._retry_after_seconds(),
            )
