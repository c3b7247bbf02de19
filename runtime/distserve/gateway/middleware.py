"""Around every request: its id, its trace, its log context, its outcome; and the body's bounds."""

import asyncio
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distserve.gateway.errors import ClientGone, Overloaded
from distserve.gateway.parse import objective_of
from distserve.gateway.service import Arrival, Gateway
from distserve.wire.ids import is_request_id, new_request_id
from distserve.wire.logs import request_id as logged_id
from distserve.wire.tracing import Tracing

MEASURED = frozenset({"/v1/completions", "/v1/chat/completions"})


class RequestContext:
    """Outermost: sets scope["state"]["arrival"], answers with x-request-id, counts outcomes."""

    def __init__(self, app: ASGIApp, gateway: Gateway, tracing: Tracing) -> None:
        self._app = app
        self._gateway = gateway
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if is_request_id(given) else new_request_id()
        state = scope.setdefault("state", {})
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        token = logged_id.set(request_id)
        measured = scope["path"] in MEASURED and scope["method"] == "POST"
        if not measured:
            try:
                await self._app(scope, receive, answer)
            finally:
                logged_id.reset(token)
            return
        at = self._gateway.clock()
        metrics = self._gateway.metrics
        metrics.in_flight.inc()
        try:
            with self._tracing.span(
                f"POST {scope['path']}", headers, request_id=request_id
            ) as span:
                state["arrival"] = Arrival(request_id, at, span)
                await self._app(scope, receive, answer)
                span.set(status=state.get("outcome", status))
        finally:
            metrics.in_flight.dec()
            code = state.get("outcome", status)
            objective = objective_of(headers, self._gateway.settings.slo)
            judged = code == 200 or code >= 500 or state.get("overdue", False)
            metrics.count_request(code, objective if judged else None, state.get("met", ()))
            metrics.duration.observe(self._gateway.clock() - at)
            logged_id.reset(token)


LARGE_BODIES = 4
"""As long as may be, that may be on their way at a time."""
SMALL_BODY_BYTES = 64 << 10
"""Up to which a body comes in whatever else is on its way."""


class BodyBounds:
    """Bounds a body's size and its pauses, and what all bodies on their way have together, before
    anything is parsed. While nobody more may wait, none is read."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        gateway = self._gateway
        read = 0
        held = 0
        complete = False
        max_bytes: int | None = None
        last = 0.0

        async def bounded() -> Message:
            nonlocal read, held, complete, max_bytes, last
            if complete:
                return await receive()
            now = asyncio.get_running_loop().time()
            if max_bytes is None:
                _check(gateway.admission.check_room)
                max_bytes = gateway.max_body_bytes()
                last = now + gateway.settings.request_timeout_seconds
            try:
                async with asyncio.timeout_at(min(now + gateway.settings.body_seconds, last)):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request's body did not come in time") from None
            if message["type"] == "http.disconnect":
                # Else the framework takes what is missing for a mistake.
                raise HTTPException(ClientGone.status, "the client left before its body was here")
            size = len(message.get("body", b""))
            read += size
            held += size
            gateway.body_bytes += size
            complete = not message.get("more_body", False)
            if read > max_bytes:
                raise HTTPException(
                    413,
                    f"the request's body is longer than {max_bytes} bytes: send a batch in parts",
                )
            if complete:
                leave()
            elif read > SMALL_BODY_BYTES and gateway.body_bytes > LARGE_BODIES * max_bytes:
                _check(gateway.admission.refuse_body)
            return message

        def leave() -> None:
            nonlocal held
            gateway.body_bytes -= held
            held = 0

        try:
            await self._app(scope, bounded, send)
        finally:
            leave()


def _check(admits: Callable[[], None]) -> None:
    """The framework lets through no other error that comes with a body."""
    try:
        admits()
    except Overloaded as full:
        raise HTTPException(full.status, full.message, full.headers()) from None
