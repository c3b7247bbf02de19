"""The engine's HTTP face: the Dialect (docs/protocol/dialect.md), probes and metrics.

Everything but the probes and metrics needs the deployment key. Handlers only translate: a leg goes
into the engine's inbox, and what comes out of the hub is written as JSON lines.
"""

import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from msgspec.structs import replace

from distserve.engine.commands import DropTransfer, StartDrain, StartLeg, StopLeg
from distserve.engine.hub import Events, Hub, closes
from distserve.engine.loop import EngineLoop
from distserve.engine.metrics import EngineMetrics
from distserve.engine.migrator_link import MigratorLink
from distserve.engine.validation import problem_of
from distserve.wire import logs
from distserve.wire.auth import has_key
from distserve.wire.dialect import AbortLeg, InstanceInfo, Leg, LegError, ReleaseTransfer
from distserve.wire.tracing import Tracing

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 << 20
"""A leg of a million prompt tokens has 7 MB."""
_LINES = "application/jsonlines"
_JSON = "application/json"
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


@dataclass
class Served:
    """What the handlers reach."""

    info: InstanceInfo
    folder: Path
    """Of the model: tokenizer files are read from it."""
    key: bytes
    loop: EngineLoop
    hub: Hub
    link: MigratorLink | None
    metrics: EngineMetrics
    tracing: Tracing
    clock: Callable[[], float] = time.monotonic
    draining: bool = field(default=False)

    @property
    def unready(self) -> str:
        """Why no leg should be sent here; empty when all is well."""
        if not self.loop.is_well():
            return "the engine does not run"
        if self.draining:
            return "draining"
        if self.link is not None and not self.link.is_up:
            return "no migrator is connected"
        return ""

    @property
    def instance(self) -> InstanceInfo:
        address = self.link.address if self.link else ""
        return replace(self.info, migrator=address, idle_seconds=self.hub.idle_seconds)


def make_app(served: Served) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    # Were it no coroutine, a pool's thread would be asked, which waits for the one that steps.
    async def require_key(authorization: Annotated[str | None, Header()] = None) -> None:
        if not has_key(authorization, served.key):
            raise HTTPException(401, "the deployment key is needed", {"WWW-Authenticate": "Bearer"})

    dialect = APIRouter(dependencies=[Depends(require_key)])
    _add_legs(dialect, served)
    _add_reports(dialect, served)
    _add_drain(dialect, served)
    app.include_router(dialect)
    _add_probes(app, served)
    return app


# ---- legs ---------------------------------------------------------------------------------------


def _add_legs(router: APIRouter, served: Served) -> None:
    @router.post("/legs")
    async def legs(request: Request) -> Response:
        leg = await _read(request, Leg)
        if problem := problem_of(leg, served.info):
            return _refuse(400, problem)
        if served.draining:
            return _refuse(503, "the instance is draining: choose another one", retryable=True)
        if not served.loop.is_well():
            return _refuse(503, "the engine does not run", retryable=True)
        events = served.hub.open_leg(leg.id)
        if events is None:
            return _refuse(409, f"leg {leg.id} runs already")
        served.loop.tell(StartLeg(leg, served.clock()))
        lines = _leg_lines(served, leg, events, dict(request.headers))
        return StreamingResponse(lines, media_type=_LINES)

    @router.post("/abort")
    async def abort(request: Request) -> Response:
        served.loop.tell(StopLeg((await _read(request, AbortLeg)).leg))
        return Response(status_code=204)

    @router.post("/release")
    async def release(request: Request) -> Response:
        served.loop.tell(DropTransfer((await _read(request, ReleaseTransfer)).transfer))
        return Response(status_code=204)


async def _leg_lines(
    served: Served, leg: Leg, events: Events, headers: dict[str, str]
) -> AsyncIterator[bytes]:
    """Until the leg has ended. Left before that, for whatever reason, it is aborted."""
    logs.request_id.set(leg.request_id)
    has_ended = False
    attributes = {"leg": leg.id, "instance": served.info.instance}
    try:
        with served.tracing.span(f"engine {leg.phases}", headers, **attributes):
            while not has_ended:
                batch = await events.get()
                has_ended = closes(batch[-1])
                if isinstance(failure := batch[-1], LegError):
                    log.info("leg %s failed: %s", leg.id, failure.message)
                yield b"".join(_encode(event) + b"\n" for event in batch)
    finally:
        served.hub.close_leg(leg.id)
        if not has_ended:
            served.loop.tell(StopLeg(leg.id))


# ---- state, instance, cache ---------------------------------------------------------------------


def _add_reports(router: APIRouter, served: Served) -> None:
    @router.get("/state")
    async def state() -> Response:
        states = (replace(s, ready=not served.unready) async for s in served.hub.states())
        return StreamingResponse(_lines(states), media_type=_LINES)

    @router.get("/kv-events")
    async def kv_events() -> Response:
        return StreamingResponse(_lines(served.hub.cache_events()), media_type=_LINES)

    @router.get("/instance")
    async def instance() -> Response:
        return Response(_encode(served.instance), media_type=_JSON)

    @router.get("/instance/files/{name}")
    async def file(name: str) -> Response:
        if name not in served.info.files:
            return _refuse(404, f"no file {name!r}: GET /instance lists them")
        return FileResponse(served.folder / name, media_type="application/octet-stream")


async def _lines(items: AsyncIterator[T]) -> AsyncIterator[bytes]:
    async for item in items:
        yield _encode(item) + b"\n"


# ---- drain, probes, metrics ---------------------------------------------------------------------


def _add_drain(router: APIRouter, served: Served) -> None:
    def report() -> Response:
        state = served.hub.state
        left = len(state.requests) if state is not None else 0
        # Only a line that was made after the engine heard of it says what is left.
        is_empty = state is not None and state.draining and left == 0
        return JSONResponse({"draining": served.draining, "requests": left, "empty": is_empty})

    @router.post("/drain")
    async def drain() -> Response:
        served.draining = True
        served.loop.tell(StartDrain())
        return report()

    @router.get("/drain")
    async def drained() -> Response:
        return report()


def _add_probes(app: FastAPI, served: Served) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        is_well = served.loop.is_well()
        return JSONResponse({"ok": is_well}, 200 if is_well else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        why = served.unready
        return JSONResponse({"ready": not why, "reason": why}, 503 if why else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(served.metrics.render(), media_type="text/plain; version=0.0.4")


# ---- bodies -------------------------------------------------------------------------------------


async def _read(request: Request, wanted: type[T]) -> T:
    """The request's body. Raises HTTPException: 413 too long, 400 no JSON, 422 wrong fields."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=wanted)
    except msgspec.ValidationError as error:
        raise HTTPException(422, _one_line(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, _one_line(error)) from error


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:500]


def _refuse(status: int, message: str, *, retryable: bool = False) -> Response:
    """In the shape of a leg's error, so that a gateway reads both alike."""
    return Response(_encode(LegError(message, retryable, status)), status, media_type=_JSON)
