"""How much may wait: beyond the bound a client hears so at once, instead of waiting unseen."""

from collections.abc import Callable

from distserve.gateway.errors import BadRequest, Overloaded


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
        if self.waiting + prompts > bound:
            raise Overloaded(
                f"{self.waiting} requests are waiting, the bound is {bound}: try again later",
                retry_after_seconds=self._retry_after_seconds(),
            )
        self.waiting += prompts
        return [Ticket(self) for _ in range(prompts)]
