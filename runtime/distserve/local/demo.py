"""The demo's main job: prompts through the gateway, their text as it comes, then a table."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from distserve.local.session import Session
from distserve.local.stats import GatewayStats, read_stats
from distserve.local.table import format_bytes, format_ms

MAX_TOKENS = 64
TIMEOUT_SECONDS = 120.0
SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Question:
    text: str
    chat: bool

    def body(self, model: str) -> dict[str, Any]:
        what: dict[str, Any] = (
            {"messages": [{"role": "user", "content": self.text}]}
            if self.chat
            else {"prompt": self.text}
        )
        return what | {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"


@dataclass
class Answer:
    """What a client of this one request sees, and what the gateway says was moved for it."""

    question: Question
    began: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    text: str = ""
    error: str = ""
    moved: dict[str, int] = field(default_factory=dict)

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first is None else (self.first - self.began) * 1000

    @property
    def tpot_ms(self) -> float | None:
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) * 1000 / (self.tokens - 1)


def questions() -> list[Question]:
    from distserve.models.builtin import DEMO_PROMPTS, DEMO_QUESTIONS

    chats = [Question(text, chat=True) for text in DEMO_QUESTIONS]
    return [*(Question(text, chat=False) for text in DEMO_PROMPTS), *chats]


async def run_demo(session: Session) -> int:
    """0 when every request was answered and KV was moved for it, else 1. One request after
    another, so that what was moved meanwhile was moved for it."""
    model = session.deployment.spec.model.id
    timeout = aiohttp.ClientTimeout(TIMEOUT_SECONDS)
    answers = []
    async with aiohttp.ClientSession(session.base_url, timeout=timeout) as http:
        for question in questions():
            answers.append(await _ask(http, session.base_url, question, model))
        stats = await read_stats(http, session.base_url) or GatewayStats()
    Console().print(_table(answers))
    failed = [answer for answer in answers if answer.error]
    for answer in failed:
        print(f"failed: {answer.question.text!r}: {answer.error}", file=sys.stderr)
    if not failed and not stats.moved_bytes and session.deployment.spec.prefill:
        print("failed: no KV was moved between the instances", file=sys.stderr)
        return 1
    return 1 if failed else 0


async def _ask(
    http: aiohttp.ClientSession, base_url: str, question: Question, model: str
) -> Answer:
    before = await read_stats(http, base_url) or GatewayStats()
    print(f"\n> {question.text}" if question.chat else f"\n{question.text}", end="")
    print("\n" if question.chat else "", end="", flush=True)
    answer = Answer(question, time.perf_counter())
    try:
        async for text in _stream(http, question, model, answer):
            answer.text += text
            print(text, end="", flush=True)
    except (TimeoutError, aiohttp.ClientError, ValueError) as error:
        answer.error = str(error) or type(error).__name__
    print(flush=True)
    answer.moved = (await _settled(http, base_url, before)).moved_since(before)
    return answer


async def _settled(
    http: aiohttp.ClientSession, base_url: str, before: GatewayStats
) -> GatewayStats:
    """The gateway's counts once it is done with the request: the answer's last line leaves a
    moment before its legs have reported what they moved."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        stats = await read_stats(http, base_url) or before
        done = stats.requests > before.requests and not stats.in_flight
        if done or time.monotonic() > deadline:
            return stats
        await asyncio.sleep(0.01)


async def _stream(
    http: aiohttp.ClientSession, question: Question, model: str, answer: Answer
) -> AsyncIterator[str]:
    """The pieces of text of a streamed answer. Raises ValueError for an error that it says."""
    async with http.post(question.path, json=question.body(model)) as response:
        if response.status != 200:
            raise ValueError(f"{response.status}: {(await response.text())[:200]}")
        async for line in response.content:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]" or data.startswith(":"):
                continue
            event = json.loads(data)
            if "error" in event:
                raise ValueError(event["error"]["message"])
            if usage := event.get("usage"):
                answer.tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                piece = choice["delta"].get("content") if question.chat else choice["text"]
                if piece:
                    answer.last = time.perf_counter()
                    answer.first = answer.first or answer.last
                    yield piece


def _table(answers: list[Answer]) -> Table:
    table = Table(title="\nwhat happened", title_justify="left")
    table.add_column("prompt")
    for column in ("tokens", "TTFT", "TPOT", "KV moved", "transport"):
        table.add_column(column, justify="right")
    for answer in answers:
        table.add_row(
            answer.question.text,
            str(answer.tokens),
            format_ms(answer.ttft_ms),
            format_ms(answer.tpot_ms),
            format_bytes(sum(answer.moved.values())),
            ", ".join(answer.moved) or "-",
        )
    return table
