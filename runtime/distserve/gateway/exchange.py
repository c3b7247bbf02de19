"""Answers one generation request: whole or as server-sent events, until it ends or the client goes.

The status is decided by the first output. Until then every failure has its own status; after it,
a failure is an error event, then `[DONE]`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from distserve.gateway.errors import ClientGone, DeadlineExceeded, GatewayError
from distserve.gateway.parse import Parsed
from distserve.gateway.presence import until_gone
from distserve.gateway.render import Chunk, Usage
from distserve.gateway.schema import ChatBody, CompletionBody
from distserve.gateway.service import Gateway
from distserve.gateway.timing import overdue, record_answer
from distserve.gateway.work import Output, Work
from distserve.wire.dialect import Slo

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 5.0
"""For a client to read what there is after the deadline of its request."""
LONG_SCORES = 8192
"""Log-probabilities from which on an answer is put together beside the event loop."""
LONG_BATCH = 64
"""Outputs from which on a part of such an answer is, too."""
DONE = b"data: [DONE]\n\n"
_JSON = (b"content-type", b"application/json")
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Answer(Protocol):
    """CompletionAnswer or ChatAnswer."""

    usage: Usage

    def opening(self) -> list[Chunk]: ...

    def chunks(self, outputs: list[Output]) -> list[Chunk]: ...

    def closing(self, **more: Any) -> list[Chunk]: ...

    def whole(self, outputs: list[Output], **more: Any) -> Chunk: ...


@dataclass(eq=False)
class Exchange(Response):
    """A response in which everything happens: returned by the endpoints."""

    gateway: Gateway
    asked: CompletionBody | ChatBody
    parsed: Parsed
    answer: Answer
    work: Work
    slo: Slo
    lifecycle: bool = False
    """The client wants to know where the time went."""

    def __post_init__(self) -> None:
        super().__init__()
        self._counted_tokens = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        talk = asyncio.create_task(self._talk(scope, send))
        gone = asyncio.create_task(until_gone(receive))
        left = self.work.deadline - asyncio.get_running_loop().time()
        try:
            # The work ends by its deadline; who then still has not read all of it, reads nothing.
            await asyncio.wait(
                {talk, gone},
                timeout=max(left, 0.0) + LAST_WORDS_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if talk.done():
                talk.result()
            else:
                scope["state"]["outcome"] = ClientGone.status
                now = self.gateway.clock()
                scope["state"]["overdue"] = overdue(self.work.timings, self.slo, now)
        finally:
            talk.cancel()
            gone.cancel()
            await asyncio.gather(talk, gone, return_exceptions=True)

    async def _talk(self, scope: Scope, send: Send) -> None:
        started = False
        self.gateway.running.add(self.work)
        try:
            async with self.work:
                if not self.asked.streams:
                    await self._whole(send)
                else:
                    async with contextlib.aclosing(self.work.outputs()) as outputs:
                        async for batch in outputs:
                            # The opening before the batch: the usage in it is that of no token.
                            opening = [] if started else self.answer.opening()
                            make = partial(self._chunks, opening, batch)
                            long = len(batch) > LONG_BATCH or self._scores_prompts
                            data = await self._made(make, long)
                            if not started:
                                started = True
                                await send(_start(200, _EVENTS))
                            await send(_part(data))
                            self._count_sent()
                    closing = self.answer.closing(**await self._more())
                    ending = [*map(_event, closing), DONE]
                    await send(_part(b"".join(ending), more=False))
            scope["state"]["met"] = self._record()
        except GatewayError as error:
            log.warning("request failed: %s", error.message, extra={"status": error.status})
            scope["state"]["outcome"] = error.status
            if started:
                await send(_part(_event(error.body()) + DONE, more=False))
            else:
                headers = [(k.lower().encode(), v.encode()) for k, v in error.headers().items()]
                await send(_start(error.status, [_JSON, *headers]))
                await send(_part(msgspec.json.encode(error.body()), more=False))
        finally:
            self.gateway.running.discard(self.work)

    async def _whole(self, send: Send) -> None:
        outputs: list[Output] = []
        async with contextlib.aclosing(self.work.outputs()) as batches:
            async for batch in batches:
                outputs += batch
        make = partial(self._body, outputs, await self._more())
        data = await self._made(make, len(outputs) > LONG_BATCH or self._scores_prompts)
        await send(_start(200, [_JSON, (b"content-length", str(len(data)).encode())]))
        await send(_part(data, more=False))
        self._count_sent()

    async def _made(self, make: Callable[[], bytes], long: bool) -> bytes:
        """What is `long` and has many log-probabilities takes up to seconds and much memory: one
        at a time, beside the event loop. Nobody else has the answer meanwhile."""
        if not long or self.parsed.scores <= LONG_SCORES:
            return make()
        turn = self.gateway.rendering
        try:
            async with asyncio.timeout_at(self.work.deadline):
                await turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                "other answers with many log-probabilities took the time of this request: ask for "
                "fewer, or again later"
            ) from None
        making = asyncio.create_task(asyncio.to_thread(make))
        # Who goes leaves the thread behind: the turn is that thread's.
        making.add_done_callback(lambda _: turn.release())
        return await asyncio.shield(making)

    @property
    def _scores_prompts(self) -> bool:
        """Any output may bring a whole prompt with it."""
        echoes = isinstance(self.asked, CompletionBody) and bool(self.asked.echo)
        return echoes or self.asked.prompt_logprobs is not None

    def _chunks(self, opening: list[Chunk], batch: list[Output]) -> bytes:
        return b"".join(map(_event, [*opening, *self.answer.chunks(batch)]))

    def _body(self, outputs: list[Output], more: dict[str, Any]) -> bytes:
        return msgspec.json.encode(self.answer.whole(outputs, **more))

    async def _more(self) -> dict[str, Any]:
        """Fields of the last chunk or of the whole answer that only who asks for them gets."""
        return {"lifecycle": await self.work.lifecycles()} if self.lifecycle else {}

    def _count_sent(self) -> None:
        """What was sent since the last time, whatever becomes of the rest."""
        sent = self.answer.usage.completion_tokens
        self.gateway.metrics.generation_tokens.inc(sent - self._counted_tokens)
        self._counted_tokens = sent

    def _record(self) -> tuple[str, ...]:
        """The objectives that were met."""
        metrics, usage = self.gateway.metrics, self.answer.usage
        now = self.gateway.clock()
        met = record_answer(self.work.timings, self.slo, metrics, self.gateway.window, now)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        ttfts = [t.ttft for t in self.work.timings if t.ttft is not None]
        extra: dict[str, Any] = usage.dump()
        extra["ttft_ms"] = round(max(ttfts, default=0.0) * 1000, 2)
        if self.asked.user is not None:
            extra["user"] = self.asked.user
        log.info("request answered", extra=extra)
        return met


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def _part(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _event(chunk: Any) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
