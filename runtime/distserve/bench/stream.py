"""Reads a completion as it streams: when each token came, and how the stream ended.

Called by `client` with every read of the socket, thousands of times a second, so events are
decoded into the few fields that matter. Tokens are counted, not events: a server may put several
tokens into one event, or send events without any.
"""

from __future__ import annotations

from distserve.bench.answer import Event, decode_event
from distserve.bench.lifecycle import of_answer


class TokenStream:
    """The times of a request's tokens, from the bytes of its event stream.

    An event's tokens are, in this order of trust: the growth of its running usage (vLLM's
    `continuous_usage_stats`), its token ids, else one if it has text. Where only the last usage
    tells that events held several tokens, they are spread evenly over the events; the first and
    the last token keep their own times, which is all that TTFT and TPOT are made of.
    """

    def __init__(self) -> None:
        self.token_times: list[float] = []
        self.prompt_tokens: int | None = None
        self.finished_at: float | None = None
        """When a finish reason came: the text is whole."""
        self.done = False
        """`[DONE]` came."""
        self.error: str | None = None
        self.lifecycle: dict[str, float] | None = None
        self._rest = b""

    @property
    def finished(self) -> bool:
        return self.finished_at is not None

    @property
    def ended(self) -> float | None:
        """When the last of a whole text came; None where there is no such text."""
        if self.failure is not None:
            return None
        return max(self.token_times[-1], self.finished_at or 0.0)

    @property
    def anything(self) -> bool:
        """Whether there was any event."""
        return bool(self.token_times or self.finished or self.done or self.error)

    @property
    def tokens(self) -> int:
        return len(self.token_times)

    @property
    def failure(self) -> str | None:
        """Why this is no complete answer; its length is the caller's to judge."""
        if self.error is not None:
            return f"error event: {self.error}"
        if not (self.done or self.finished):
            return "truncated stream"
        return None if self.token_times else "no tokens"

    def feed(self, data: bytes, now: float) -> None:
        """Take what was read at `now`; raises as `answer.decode_event` on what is no event."""
        lines = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            body = line[5:].strip()
            if body == b"[DONE]":
                self.done = True
            elif body:
                self._take(decode_event(body), now)

    def _take(self, event: Event, now: float) -> None:
        if event.error is not None:
            self.error = event.error_line
            return
        if event.lifecycle is not None:
            self.lifecycle = of_answer(event.lifecycle)
        new = 0
        for choice in event.choices:
            if choice.token_ids is not None:
                new += len(choice.token_ids)
            elif choice.has_text:
                new += 1
            if choice.finish_reason is not None and self.finished_at is None:
                self.finished_at = now
        if event.usage is not None:
            self.prompt_tokens = event.usage.prompt_tokens
            total = event.usage.completion_tokens
            if event.choices:
                new = total - len(self.token_times)
            elif self.token_times and total > len(self.token_times):
                self.token_times = _spread(self.token_times, total)
                return
        if new > 0:
            self.token_times.extend([now] * new)


def _spread(times: list[float], tokens: int) -> list[float]:
    events = len(times)
    if events == 1:
        return times * tokens
    last = tokens - 1
    return [times[index * (events - 1) // last] for index in range(tokens)]
