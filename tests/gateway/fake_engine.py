"""An engine that speaks the Dialect over real sockets and writes the alphabet (`fake_text`); faults
happen on request."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from tests.gateway.fake_text import BOS, EOS, VOCAB, make_tokenizer, scores, write

from distserve.wire.auth import bearer
from distserve.wire.dialect import (
    AbortLeg,
    Declined,
    End,
    Finish,
    Handoff,
    InstanceInfo,
    InstanceState,
    KvEvent,
    Leg,
    LegError,
    Lifecycle,
    Phases,
    PromptScores,
    ReleaseTransfer,
    RequestState,
    Source,
    Token,
)

KEY = b"k" * 32
OTHER_TOKENIZER = {"tokenizer.json": make_tokenizer() + b"\n"}
"""Its ids are none of the first one's, as far as digests tell."""
BLOCK_TOKENS = 4
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}"
    "{% if messages[0].content == 'refuse me' %}{{ raise_exception('not this one') }}{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass
class Fault:
    """What a leg does instead of going well."""

    kind: str
    """refuse | closed | error | fatal | moves | disconnect | hang | decline | fork"""
    after_tokens: int = 0
    phases: Phases | None = None
    """Only legs of these phases."""


@dataclass(eq=False)
class Transfers:
    """Stands for the migrators of all engines: which prefills are committed."""

    engines: list["FakeEngine"] = field(default_factory=list)
    committed: dict[str, asyncio.Event] = field(default_factory=dict)

    def of(self, transfer: str) -> asyncio.Event:
        return self.committed.setdefault(transfer, asyncio.Event())


@dataclass(eq=False)
class FakeEngine:
    name: str
    role: str
    transfers: Transfers
    strategy: str = "Disaggregated"
    fingerprint: str = "f0"
    revision: str = "r0"
    model: str = "test"
    max_model_len: int = 256
    chat_template: str | None = TEMPLATE
    files: dict[str, bytes] = field(default_factory=lambda: {"tokenizer.json": make_tokenizer()})
    files_sent: int = 0
    token_seconds: float = 0.0
    queue_gate: asyncio.Event | None = None
    """Legs wait for it before anything is said of them."""
    prefill_gate: asyncio.Event | None = None
    """Prefills wait for it where there is one."""
    fetch_gate: asyncio.Event | None = None
    """Decodes wait for it before they fetch."""
    eos_at: int | None = None
    """Output index at which the model ends by itself."""
    faults: list[Fault] = field(default_factory=list)
    legs: list[Leg] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    live: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)
    """Transfers whose blocks are held."""
    kv_lines: list[KvEvent] = field(default_factory=list)
    free_blocks: int = 1000
    draining: bool = False
    ready: bool = True
    silent: bool = False
    """As on a node that was lost: what is open stands still, and nothing is answered."""
    unreachable: set[str] = field(default_factory=set)
    """Engines whose migrators the one here cannot reach."""
    epoch: int = 1
    url: str = ""
    _sequence: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        app = web.Application(middlewares=[self._authorised])
        app.add_routes(
            [
                web.get("/instance", self._instance),
                web.get("/instance/files/{name}", self._file),
                web.get("/state", self._state),
                web.get("/kv-events", self._kv_events),
                web.post("/legs", self._leg),
                web.post("/abort", self._abort),
                web.post("/release", self._release),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """As killed: every connection breaks."""
        for task in list(self.live.values()):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def changed(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    @property
    def quiet(self) -> bool:
        return not self.live and not self.offered

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != bearer(KEY):
            return web.Response(status=401)
        if self.silent:
            await asyncio.Event().wait()
        response: web.StreamResponse = await handler(request)
        return response

    async def _instance(self, request: web.Request) -> web.Response:
        info = InstanceInfo(
            instance=self.name, role=self.role, unit="u0", revision=self.revision,
            epoch=self.epoch, fingerprint=self.fingerprint, model=self.model,
            strategy=self.strategy, block_tokens=BLOCK_TOKENS, total_blocks=1000,
            max_model_len=self.max_model_len, max_num_seqs=64, max_num_batched_tokens=512,
            vocab_size=VOCAB, bos_token_id=BOS, eos_token_ids=[EOS],
            chat_template=self.chat_template,
            files={n: hashlib.sha256(body).hexdigest() for n, body in self.files.items()},
            sampling_defaults={"temperature": 0.5},
        )  # fmt: skip
        return web.Response(body=msgspec.json.encode(info), content_type="application/json")

    async def _file(self, request: web.Request) -> web.Response:
        self.files_sent += 1
        return web.Response(body=self.files[request.match_info["name"]])

    def _state_line(self) -> bytes:
        self._sequence += 1
        requests = [
            RequestState(
                leg=leg.id, phase="decode", context_tokens=len(leg.prompt),
                tokens_left=0 if leg.phases is Phases.PREFILL
                else len(leg.choices) * leg.sampling.max_tokens,
                tokens_out=0, seats=len(leg.choices), age_ms=0.0,
            )
            for leg in self.legs
            if leg.id in self.live
        ]  # fmt: skip
        state = InstanceState(
            epoch=self.epoch, sequence=self._sequence, free_blocks=self.free_blocks,
            total_blocks=1000, waiting=0, running=len(requests), draining=self.draining,
            ready=self.ready, requests=requests,
        )  # fmt: skip
        return msgspec.json.encode(state) + b"\n"

    async def _state(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            changed = self._changed
            if self.silent:
                await asyncio.Event().wait()
            await response.write(self._state_line())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 1.0)

    async def _kv_events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        sent = 0
        while True:
            changed = self._changed
            if self.silent:
                await asyncio.Event().wait()
            for line in self.kv_lines[sent:]:
                await response.write(msgspec.json.encode(line) + b"\n")
            sent = len(self.kv_lines)
            await changed.wait()

    async def _abort(self, request: web.Request) -> web.Response:
        leg = msgspec.json.decode(await request.read(), type=AbortLeg).leg
        self.aborted.append(leg)
        if task := self.live.get(leg):
            task.cancel()
        self.offered -= {known.transfer for known in self.legs if known.id == leg}
        return web.Response()

    async def _release(self, request: web.Request) -> web.Response:
        transfer = msgspec.json.decode(await request.read(), type=ReleaseTransfer).transfer
        self.released.append(transfer)
        self.offered.discard(transfer)
        return web.Response()

    async def _leg(self, request: web.Request) -> web.StreamResponse:
        leg = msgspec.json.decode(await request.read(), type=Leg)
        self.legs.append(leg)
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        fault = next((f for f in self.faults if f.phases in (None, leg.phases)), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault.kind == "refuse":
                return web.Response(status=500, text="out of order")
            if fault.kind == "closed":
                refusal = LegError("takes nothing now", retryable=True, status=503)
                return web.Response(status=503, body=_line(refusal))
        response = web.StreamResponse()
        await response.prepare(request)
        if leg.id in self.aborted:
            await response.write(_line(LegError("aborted", retryable=False)))
            return response
        task = asyncio.current_task()
        assert task is not None
        self.live[leg.id] = task
        self.changed()
        try:
            async for event in self._events(leg, fault):
                if event is None:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(_line(event))
        except ConnectionResetError:
            pass
        finally:
            del self.live[leg.id]
            self.changed()
        return response

    async def _events(self, leg: Leg, fault: Fault | None) -> AsyncIterator[Any]:
        """None: the connection breaks."""
        if fault is not None and fault.kind == "decline":
            yield Declined(msgspec.json.decode(self._state_line(), type=InstanceState))
            return
        if self.queue_gate is not None:
            await self.queue_gate.wait()
        if leg.phases is Phases.DECODE:
            assert leg.source is not None
            if self.fetch_gate is not None:
                await self.fetch_gate.wait()
            if leg.source.migrator.partition(":")[0] in self.unreachable:
                yield LegError("KV migration failed: unreachable", retryable=True, status=502)
                return
            await self.transfers.of(leg.source.transfer).wait()
        else:
            if leg.transfer is not None:
                self.offered.add(leg.transfer)
                yield Handoff(Source(leg.transfer, f"{self.name}:8101"))
            if self.prefill_gate is not None:
                await self.prefill_gate.wait()
            if leg.sampling.prompt_logprobs is not None:
                top = leg.sampling.prompt_logprobs
                yield PromptScores([None, *(scores(t, top) for t in leg.prompt[1:])])
        made = 0
        for event in self._output(leg):
            if self.silent:
                await asyncio.Event().wait()
            if fault is not None and fault.kind == "fork":
                if isinstance(event, Token):
                    event = msgspec.structs.replace(event, id=ord("#"), text="#")
            elif fault is not None and made >= fault.after_tokens:
                if fault.kind in {"error", "fatal"}:
                    yield LegError("told to fail", retryable=fault.kind == "error", status=500)
                    return
                if fault.kind == "moves":
                    yield LegError("the instance shuts down", retryable=True, status=503)
                    return
                if fault.kind == "disconnect":
                    yield None
                    return
                assert fault.kind == "hang", fault
                await asyncio.Event().wait()
            if isinstance(event, Token):
                made += 1
                if self.token_seconds:
                    await asyncio.sleep(self.token_seconds)
            yield event
        ended = leg.phases is Phases.PREFILL and isinstance(event, Finish)
        if leg.phases is Phases.PREFILL and leg.transfer is not None and not ended:
            self.transfers.of(leg.transfer).set()
        if leg.phases is Phases.DECODE and leg.source is not None:
            for engine in self.transfers.engines:
                engine.offered.discard(leg.source.transfer)
        yield End(_LIVES[leg.phases], transport="TCP" if leg.source else "",
                  transfer_bytes=4096 if leg.source else 0)  # fmt: skip

    def _output(self, leg: Leg) -> list[Token | Finish]:
        """All that the leg brings, choices side by side."""
        columns = [write(leg, choice, self.eos_at) for choice in leg.choices]
        longest = max(map(len, columns))
        return [c[row] for row in range(longest) for c in columns if row < len(c)]


_LIVES = {
    Phases.PREFILL: Lifecycle(context_begin_ms=2.0, context_end_ms=10.0),
    Phases.DECODE: Lifecycle(
        migration_begin_ms=1.0, migration_end_ms=12.0, decoding_begin_ms=15.0, decoding_end_ms=40.0
    ),
    Phases.BOTH: Lifecycle(
        context_begin_ms=2.0, context_end_ms=10.0, decoding_begin_ms=10.0, decoding_end_ms=40.0
    ),
}


def _line(event: Any) -> bytes:
    return msgspec.json.encode(event) + b"\n"
