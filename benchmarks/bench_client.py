"""How true the measuring client is: against a server that sends at known times.

    .venv/bin/python -m benchmarks.bench_client [--streams 500] [--tokens-per-second 3000]

The server is a process of its own on this machine. It notes on the clock that both share when
each request came and when it wrote each token; the client's figures are compared with those.
Requests leave one in each slot, anywhere in it; each lives `--seconds-each` and gets a token each
streams / tokens-per-second seconds. Each aim is printed as met or missed; exit code 1 where one is
missed. Judged are the requests that the machine's own pauses left alone (see `pauses`, for which it
takes root); the figures of all are printed beside. Other load shows too; `chrt -f 5` before the
command keeps other processes out of the figures (root).
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast

import msgspec
import uvloop
from benchmarks.pauses import Pauses, watched

from distserve.bench.client import Client, Target
from distserve.bench.connections import allow_many_connections, open_session
from distserve.bench.openloop import Observed, offer
from distserve.bench.outcome import Outcome, Planned
from distserve.bench.quantiles import quantile

AIM_MS = 2.0
"""For the p99 of each difference from the truth."""
AIM_STREAMS = 0.95
"""Of the streams that were asked for: what was offered is what is judged."""
LEAST_JUDGED = 0.5
"""Of the requests, that the machine left alone: of fewer nothing is said."""
EXIT_MISSED = 1
FIRST_TOKEN_SECONDS = 0.05
CHUNK = b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,'
CHUNK += b'"model":"stub","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":'


@dataclass
class Truth:
    """What the server did with one request, on the machine's monotonic clock."""

    came: float
    written: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.written[0] - self.came

    @property
    def tpot(self) -> float:
        return (self.written[-1] - self.written[0]) / (len(self.written) - 1)


class Server(asyncio.Protocol):
    """Just enough HTTP for one client: a POST with a length, an event stream in chunks."""

    def __init__(self, gap: float, truths: dict[int, Truth]) -> None:
        self.gap = gap
        self.truths = truths
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        came = time.perf_counter()
        self.data += data
        head, separator, body = self.data.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        if len(body) < length:
            return
        self.data = b""
        request = msgspec.json.decode(body)
        self.truth = self.truths[request["prompt"][0]] = Truth(came)
        self.left = self.tokens = request["max_tokens"]
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self.due = came + FIRST_TOKEN_SECONDS
        self._later()

    def _later(self) -> None:
        asyncio.get_running_loop().call_later(self.due - time.perf_counter(), self._token)

    def _token(self) -> None:
        if self.transport.is_closing():
            return
        self.left -= 1
        finish = b'"length"' if not self.left else b"null"
        usage = b'}],"usage":{"prompt_tokens":8,"completion_tokens":%d}}\n\n' % (
            self.tokens - self.left
        )
        event = CHUNK + finish + usage
        if not self.left:
            event += b"data: [DONE]\n\n"
        frame = b"%x\r\n%s\r\n" % (len(event), event)
        self.transport.write(frame if self.left else frame + b"0\r\n\r\n")
        self.truth.written.append(time.perf_counter())
        if self.left:
            self.due += self.gap
            self._later()


async def serve(gap: float) -> None:
    """Prints its port, serves until stdin closes, prints the truth."""
    truths: dict[int, Truth] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(gap, truths), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()
    json.dump({n: [t.came, t.written] for n, t in truths.items()}, sys.stdout)


def plan(streams: int, gap: float, seconds_each: float, seconds: float) -> list[Planned]:
    rate = streams / seconds_each
    tokens = round((seconds_each - FIRST_TOKEN_SECONDS) / gap) + 1
    draw = random.Random(0)
    return [
        Planned(index, (index + draw.random()) / rate, [index] + [7] * 255, 256, tokens)
        for index in range(round(rate * seconds))
    ]


async def measure(port: int, requests: list[Planned]) -> Observed:
    target = Target(f"http://127.0.0.1:{port}", "stub")
    async with open_session(target.timeout_seconds) as http:
        client = Client(http, target)
        warm_up = Planned(1 << 30, 0.0, [1 << 30], 1, 2)
        await client.send(warm_up, target.body([1 << 30], 2), time.perf_counter())
        return await offer(requests, client)


def spread(values: list[float]) -> str:
    return "  ".join(f"p{p} {quantile(values, p):7.3f}" for p in (50, 90, 99)) + (
        f"  max {max(values):7.3f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--tokens-per-second", type=float, default=3000.0)
    parser.add_argument("--seconds-each", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.seconds <= args.seconds_each:
        parser.error("--seconds must be longer than --seconds-each: else all streams never run")
    allow_many_connections()
    if args.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(args.serve))
        return 0
    gap = args.streams / args.tokens_per_second
    requests = plan(args.streams, gap, args.seconds_each, args.seconds)
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bench_client", "--serve", str(gap)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        port = int(server.stdout.readline())
        began, cpu = time.perf_counter(), time.process_time()
        with watched() as pauses, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            observed = runner.run(measure(port, requests))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        answer, _ = server.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        server.wait(10)
    truths = {int(n): Truth(came, written) for n, (came, written) in json.loads(answer).items()}
    figures = compared(observed, truths, pauses)
    report(figures, cpu / wall)
    misses = missed(figures, args.streams)
    print("\n".join(f"MISSED: {miss}" for miss in misses) or "every aim is met")
    return EXIT_MISSED if misses else 0


@dataclass(frozen=True)
class Figures:
    """What the client saw, and in milliseconds how far that is from the truth."""

    asked: int
    failures: dict[str, int]
    most_streams: int
    tokens_per_second: float
    off: dict[str, list[float]]
    """By what was compared; of complete requests that the machine left alone."""
    off_all: dict[str, list[float]]
    """The same of all complete requests."""
    pauses: Pauses
    send_lag_p99_ms: float
    loop_lag_p99_ms: float

    @property
    def judged(self) -> int:
        return max(map(len, self.off.values()), default=0)

    @property
    def complete(self) -> int:
        return self.asked - sum(self.failures.values())


def compared(observed: Observed, truths: dict[int, Truth], pauses: Pauses) -> Figures:
    good = [o for o in observed.outcomes if o.complete]
    steps = sorted(
        [(o.sent, 1) for o in good] + [(o.ended, -1) for o in good], key=lambda step: step[0]
    )
    ended = min((o.ended for o in good), default=0.0)  # between these two the number of
    sent = max((o.sent for o in good), default=0.0)  # streams neither rises nor falls
    tokens = sum(ended <= at < sent for o in good for at in o.token_times)
    alone = [o for o in good if not pauses.touch(instants(o, truths[o.index]))]
    return Figures(
        len(observed.outcomes),
        dict(Counter(o.failure for o in observed.outcomes if o.failure is not None)),
        max(accumulate((step for _, step in steps), initial=0)),
        tokens / (sent - ended) if sent > ended else 0.0,
        differences(alone, truths),
        differences(good, truths),
        pauses,
        observed.lag.send_p99_ms,
        observed.lag.loop_p99_ms,
    )


def instants(seen: Outcome, truth: Truth) -> Iterator[float]:
    """All that a request's differences are made of."""
    yield from (seen.planned, seen.sent, truth.came)
    for times in (seen.token_times, truth.written):
        yield from (times[0], times[-1])


def differences(outcomes: Sequence[Outcome], truths: dict[int, Truth]) -> dict[str, list[float]]:
    """From the truth, in milliseconds, by what was compared."""
    pairs = [(o, truths[o.index]) for o in outcomes]
    return {
        "measured TTFT from the truth": [
            abs(o.ttft - truth.ttft) * 1000 for o, truth in pairs if o.ttft is not None
        ],
        "measured TPOT from the truth": [
            abs(o.tpot - truth.tpot) * 1000 for o, truth in pairs if o.tpot is not None
        ],
        "arrival at the server from plan": [
            abs(truth.came - o.planned) * 1000 for o, truth in pairs
        ],
    }


def missed(figures: Figures, streams: int) -> list[str]:
    """The aims that were not reached, each with what was seen; empty where all are met."""
    misses = [
        f"{count} of {figures.asked} requests failed: {reason}"
        for reason, count in figures.failures.items()
    ]
    if figures.most_streams < AIM_STREAMS * streams:
        misses.append(f"at most {figures.most_streams} of {streams} streams at once")
    if figures.judged < LEAST_JUDGED * figures.complete:
        misses.append(
            f"the machine left {figures.judged} of {figures.complete} requests alone: "
            "not judged; run it again on a quieter one"
        )
        return misses
    for name, values in figures.off.items():
        if not (p99 := quantile(values, 99)) < AIM_MS:
            misses.append(f"{name}: p99 {p99:.3f} ms, aim below {AIM_MS:g} ms")
    return misses


def report(figures: Figures, cores: float) -> None:
    print(
        f"{figures.complete} of {figures.asked} requests complete, at most "
        f"{figures.most_streams} streams at once, {figures.tokens_per_second:.0f} tokens/s; "
        f"client {cores:.2f} cores; load of the machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    if figures.pauses.known:
        print(
            f"the machine stood still {len(figures.pauses.spans)} times, a core for "
            f"{figures.pauses.seconds * 1000:.0f} ms in all; it left {figures.judged} of "
            f"{figures.complete} requests alone"
        )
    else:
        print("no real-time priority: the machine's own pauses are in the figures (run as root)")
    for whose, off in (("left alone", figures.off), ("all", figures.off_all)):
        for name, values in off.items():
            print(f"{name + ', ms':<36}{spread(values) if values else 'nothing'}  ({whose})")
    print(
        f"the client's own account: send lag p99 {figures.send_lag_p99_ms:.3f} ms, "
        f"event loop p99 {figures.loop_lag_p99_ms:.3f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
