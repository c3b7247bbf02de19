"""Sends one request to an OpenAI server and watches its answer. Called by `openloop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from distserve.bench.errors import BenchError
from distserve.bench.lifecycle import HEADER, of_answer
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.stream import TokenStream, decode_event
from distserve.workload import Objectives

EVENT_STREAM = "text/event-stream"
_ERROR_TEXT = 200  # characters of a server's explanation that are kept


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
    """One HTTP session for a run; as many connections as there are requests in flight."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        target: Target,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._http = http
        self.target = target
        self._clock = clock
        self._headers = {"content-type": "application/json", **dict((HEADER, *target.headers))}

    async def send(self, request: Planned, body: bytes, planned: float) -> Outcome:
        """Never raises for what the server does: a failure is part of the measurement."""
        outcome = Outcome(
            request.index, request.prompt_tokens, request.output_tokens,
            planned=planned, sent=self._clock(), ended=0.0, own=request.own,
        )  # fmt: skip
        headers = self._headers | slo_headers(request.own)
        stream = TokenStream()
        try:
            async with self._http.post(
                self.target.address, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    outcome.failure = explain(answer.status, await answer.text(errors="replace"))
                elif self.target.stream:
                    clock, feed = self._clock, stream.feed
                    async for data in answer.content.iter_any():
                        feed(data, clock())
                    if not stream.anything and answer.content_type != EVENT_STREAM:
                        outcome.failure = f"no event stream but {answer.content_type}"
                else:
                    whole = decode_event(await answer.read())
                    outcome.tokens = whole.usage.completion_tokens if whole.usage else 0
                    outcome.lifecycle = of_answer(whole.lifecycle)
        except TimeoutError:
            outcome.failure = f"timed out after {self.target.timeout_seconds:g} s"
        except aiohttp.ClientPayloadError:
            pass  # the connection broke inside the answer: how far it came is said below
        except (aiohttp.ClientError, OSError) as error:
            outcome.failure = _connection_words(error)
        except msgspec.DecodeError:
            outcome.failure = "an answer that is no JSON"
        outcome.ended = self._clock()
        if self.target.stream:
            _conclude(outcome, stream, self.target.ignore_eos)
        return outcome


def slo_headers(objectives: Objectives) -> dict[str, str]:
    """How this gateway is told of them; other servers pass over unknown headers."""
    told = {"x-slo-ttft-ms": objectives.ttft_ms, "x-slo-tpot-ms": objectives.tpot_ms}
    return {name: f"{ms:g}" for name, ms in told.items() if ms is not None}


def explain(status: int, text: str) -> str:
    """A refusal in one line: the status, and the server's message where it has OpenAI's shape."""
    try:
        answer = msgspec.json.decode(text)
        message = answer["error"]["message"] if "error" in answer else answer["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = text
    line = " ".join(str(message).split())[:_ERROR_TEXT]
    return f"HTTP {status}: {line}" if line else f"HTTP {status}"


def _conclude(outcome: Outcome, stream: TokenStream, exact_length: bool) -> None:
    outcome.token_times = stream.token_times
    outcome.tokens = len(stream.token_times)
    outcome.lifecycle = stream.lifecycle
    if outcome.failure is not None:
        return
    if stream.error is not None:
        outcome.failure = f"error event: {' '.join(stream.error.split())[:_ERROR_TEXT]}"
    elif not (stream.done or stream.finished):
        outcome.failure = "truncated stream"
    elif not stream.token_times:
        outcome.failure = "no tokens"
    elif exact_length and outcome.tokens < outcome.output_tokens:
        outcome.failure = "fewer tokens than asked"


def _connection_words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or error.os_error}"
    return f"connection lost: {type(error).__name__}"
