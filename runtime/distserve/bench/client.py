"""Sends one request to an OpenAI server and watches its answer. Called by `openloop`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import aiohttp
import msgspec

from distserve.bench.answer import WholeAnswer, one_line
from distserve.bench.connections import Spare
from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import HEADER
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.stream import TokenStream
from distserve.workload import Objectives

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Target:
    """A server and how it is to be asked."""

    url: str
    """Base URL; with or without `/v1`."""
    model: str
    endpoint: str = "completions"
    """`completions`, or `chat` (the prompt becomes the one user message)."""
    stream: bool = True
    ignore_eos: bool = True
    running_usage: bool = True
    """Ask for the token count in each event; vLLM and this gateway have it."""
    usage: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = 600.0

    @property
    def address(self) -> str:
        base = self.url.rstrip("/")
        base = base if base.endswith("/v1") else base + "/v1"
        return base + ("/chat/completions" if self.endpoint == "chat" else "/completions")

    @property
    def shown(self) -> str:
        """The address for messages: without the user and password that it may have."""
        parts = urlsplit(self.address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def body(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
        """The request's JSON: greedy, exactly `output_tokens` long where the server can."""
        fields: dict[str, object] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": self.stream,
        }
        if self.endpoint == "chat":
            if not isinstance(prompt, str):
                raise BenchError("chat takes no token ids; use --prompt-format text")
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.stream and self.usage:
            options = {"include_usage": True}
            if self.running_usage:
                options["continuous_usage_stats"] = True
            fields["stream_options"] = options
        return msgspec.json.encode(fields)

    def weaker(self) -> Target | None:
        """How to ask a server that refused: first without vLLM's usage, then without any."""
        if not self.stream or not self.usage:
            return None
        return replace(self, running_usage=False, usage=self.running_usage)


class Client:
    """One HTTP session for a run (see `open_session`); a connection for each request in flight or
    soon due."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        target: Target,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._http = http
        self.target = target
        self._clock = clock
        self._headers = {
            "content-type": "application/json",
            **dict((HEADER, *target.headers)),
        }

    def spare(self) -> Spare:
        """For a request that is due soon; who asks for it drops it."""
        return Spare(self._http, self.target.address)

    async def send(
        self, request: Planned, body: bytes, planned: float, spare: Spare | None = None
    ) -> Outcome:
        """Never raises for what the server does: a failure is part of the measurement."""
        outcome = Outcome(
            request.index, request.prompt_tokens, request.output_tokens,
            planned=planned, sent=self._clock(), ended=0.0, own=request.own,
        )  # fmt: skip
        headers = self._headers | slo_headers(request.own)
        heard = TokenStream() if self.target.stream else WholeAnswer()
        try:
            async with asyncio.timeout(self.target.timeout_seconds):
                if spare is not None:
                    await spare.ready()
                await self._ask(body, headers, heard, outcome)
        except TimeoutError:
            outcome.failure = f"timed out after {self.target.timeout_seconds:g} s"
        except aiohttp.ClientPayloadError:
            pass  # the connection broke inside the answer: how far it came is said below
        except (aiohttp.ClientError, OSError) as error:
            outcome.failure = _connection_words(error)
        except msgspec.ValidationError as error:
            outcome.failure = f"an answer of another shape than OpenAI's: {one_line(str(error))}"
        except (msgspec.DecodeError, UnicodeDecodeError):
            outcome.failure = "an answer that is no JSON"
        outcome.ended = self._clock()
        _conclude(outcome, request, heard, self.target.ignore_eos)
        return outcome

    async def _ask(
        self,
        body: bytes,
        headers: dict[str, str],
        heard: TokenStream | WholeAnswer,
        outcome: Outcome,
    ) -> None:
        async with self._http.post(
            self.target.address, data=body, headers=headers, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                outcome.failure = explain(answer.status, await _what_came(answer))
            elif isinstance(heard, WholeAnswer):
                heard.take(await answer.read())
            else:
                clock, feed = self._clock, heard.feed
                async for data in answer.content.iter_any():
                    feed(data, clock())
                if not heard.anything and answer.content_type != EVENT_STREAM:
                    outcome.failure = f"no event stream but {answer.content_type}"


def slo_headers(objectives: Objectives) -> dict[str, str]:
    """How this gateway is told of them; other servers pass over unknown headers."""
    told = {"x-slo-ttft-ms": objectives.ttft_ms, "x-slo-tpot-ms": objectives.tpot_ms}
    return {name: f"{ms:g}" for name, ms in told.items() if ms is not None}


def refused_as_it_was_asked(failure: str) -> bool:
    """Whether the server may answer the same request with less in it: 422 is FastAPI's 400."""
    return failure.startswith(("HTTP 400", "HTTP 422"))


def explain(status: int, text: str) -> str:
    """A refusal in one line: the status, and the server's message where it has OpenAI's shape."""
    try:
        answer = msgspec.json.decode(text)
        message = answer["error"]["message"] if "error" in answer else answer["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = text
    line = one_line(str(message))
    return f"HTTP {status}: {line}" if line else f"HTTP {status}"


async def _what_came(answer: aiohttp.ClientResponse) -> str:
    """A refusal is one by its status, also where its words break off."""
    try:
        return await answer.text(errors="replace")
    except (aiohttp.ClientError, OSError):
        return ""


def _conclude(
    outcome: Outcome, request: Planned, heard: TokenStream | WholeAnswer, exact_length: bool
) -> None:
    outcome.token_times = heard.token_times
    outcome.tokens = heard.tokens
    outcome.lifecycle = heard.lifecycle
    if heard.prompt_tokens:
        outcome.prompt_tokens_off = heard.prompt_tokens - request.prompt_tokens
        if isinstance(request.prompt, str):
            outcome.prompt_tokens = heard.prompt_tokens
    if outcome.failure is None:
        outcome.failure = heard.failure
    if outcome.failure is None and exact_length and outcome.tokens < outcome.output_tokens:
        outcome.failure = "fewer tokens than asked"
    if outcome.failure is None and heard.ended is not None:
        # What comes after the text, as the stages that this gateway waits for, is no part of it.
        outcome.ended = heard.ended


def _connection_words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    return f"connection lost: {type(error).__name__}"
