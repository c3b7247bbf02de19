"""The HTTP surface: OpenAI's endpoints and the gateway's own pages. Decorators live here."""

import contextlib
import importlib.metadata
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from distserve.gateway.chat import ChatAnswer
from distserve.gateway.completions import CompletionAnswer
from distserve.gateway.errors import (
    BadRequest,
    BodyTooLarge,
    ClientGone,
    GatewayError,
    NoRoute,
    Overloaded,
)
from distserve.gateway.exchange import Exchange
from distserve.gateway.middleware import BodyBounds, RequestContext
from distserve.gateway.parse import (
    Parsed,
    check_model,
    parse_chat,
    parse_completion,
    parse_lifecycle,
    parse_slo,
    tokenized,
)
from distserve.gateway.presence import while_waited_for
from distserve.gateway.render import Envelope
from distserve.gateway.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ErrorBody,
    TokenizeBody,
)
from distserve.gateway.service import Arrival, Gateway
from distserve.gateway.stats import check_may_read, stats_of
from distserve.gateway.timing import PromptTiming, overdue
from distserve.wire.dialect import Slo
from distserve.wire.tracing import Tracing

VERSION = importlib.metadata.version("distserve")
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 404, 413, 429, 500, 502, 503, 504)
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream: true as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    **ERRORS,
}


def make_app(gateway: Gateway, tracing: Tracing) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.close()
            tracing.close()

    app = FastAPI(
        title="DistServe gateway",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(BodyBounds, gateway=gateway)
    app.add_middleware(RequestContext, gateway=gateway, tracing=tracing)
    app.add_exception_handler(GatewayError, _on_gateway_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)
    _add_openai(app, gateway)
    _add_pages(app, gateway)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_openai(app: FastAPI, gateway: Gateway) -> None:
    settings = gateway.settings

    async def parsed_in_time(
        parsing: Coroutine[Any, Any, Parsed], request: Request, slo: Slo
    ) -> Parsed:
        arrival: Arrival = request.state.arrival
        try:
            left = gateway.seconds_left(arrival)
            return await while_waited_for(parsing, request.receive, left)
        except ClientGone:
            timing = PromptTiming(arrival.at, gateway.metrics)
            request.state.overdue = overdue([timing], slo, gateway.clock())
            raise

    @app.post("/v1/completions", responses=STREAMED, response_class=Response)
    async def completions(body: CompletionBody, request: Request) -> Response:
        arrival: Arrival = request.state.arrival
        check_model(body.model, settings.model)
        slo = parse_slo(request.headers, settings.slo)
        lifecycle = parse_lifecycle(request.headers)
        model = gateway.models.current()
        with gateway.admission.admitting(len(body.prompts)) as tickets:
            parsed = await parsed_in_time(
                parse_completion(body, model, arrival.request_id, slo), request, slo
            )
        work = gateway.take(parsed, tickets, arrival)
        envelope = Envelope(f"cmpl-{arrival.request_id}", int(time.time()), settings.model)
        answer = CompletionAnswer(body, parsed, model.text, envelope)
        return Exchange(gateway, body, parsed, answer, work, slo, lifecycle)

    @app.post("/v1/chat/completions", responses=STREAMED, response_class=Response)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        arrival: Arrival = request.state.arrival
        check_model(body.model, settings.model)
        slo = parse_slo(request.headers, settings.slo)
        lifecycle = parse_lifecycle(request.headers)
        model = gateway.models.current()
        with gateway.admission.admitting(1) as tickets:
            parsed = await parsed_in_time(
                parse_chat(body, model, arrival.request_id, slo), request, slo
            )
        work = gateway.take(parsed, tickets, arrival)
        envelope = Envelope(f"chatcmpl-{arrival.request_id}", int(time.time()), settings.model)
        answer = ChatAnswer(body, parsed, model.text, envelope)
        return Exchange(gateway, body, parsed, answer, work, slo, lifecycle)

    started = int(time.time())

    def model_card() -> dict[str, Any]:
        try:
            context = gateway.models.current().info.max_model_len
        except NoRoute:
            context = None
        return {
            "id": settings.model,
            "object": "model",
            "created": started,
            "owned_by": "distserve",
            "max_model_len": context,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @app.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
    async def model(model: str) -> dict[str, Any]:
        check_model(model, settings.model)
        return model_card()

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
        check_model(body.model, settings.model)
        current = gateway.models.current()
        with gateway.admission.passing():
            ids = await while_waited_for(
                tokenized(body, current), request.receive, settings.request_timeout_seconds
            )
        return {"count": len(ids), "max_model_len": current.info.max_model_len, "tokens": ids}

    @app.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
        check_model(body.model, settings.model)
        text = gateway.models.current().text
        with gateway.admission.passing():
            [prompt] = await while_waited_for(
                text.decode([body.tokens], aside=True),
                request.receive,
                settings.request_timeout_seconds,
            )
        return {"prompt": prompt}


def _add_pages(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health", response_class=PlainTextResponse, responses={503: {}})
    async def health() -> Response:
        """The process answers, and still hears of its instances."""
        alive = gateway.alive
        return PlainTextResponse("ok\n" if alive else "discovery ended\n", 200 if alive else 503)

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: {}})
    async def readyz() -> Response:
        """Some complete route exists, or did a moment ago: a request would be answered, or held."""
        ready = gateway.in_service()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(
            generate_latest(gateway.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    @app.get("/stats", include_in_schema=False)
    async def stats(request: Request) -> dict[str, Any]:
        check_may_read(request, gateway.settings.key)
        return stats_of(gateway)


# ---- errors ---------------------------------------------------------------------------------


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return JSONResponse(error.body(), error.status, error.headers())


async def _on_invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong, by the name of its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [str(part) for part in first["loc"][1:] if isinstance(part, str | int)]
    param = first.get("ctx", {}).get("param") or (path[0] if path else None)
    message = first["msg"]
    if len(first["loc"]) == 1 and isinstance(first.get("input"), bytes):
        # The framework reads only what says that it is JSON.
        message = "the body is taken for no JSON: send it with Content-Type: application/json"
    elif first["type"] == "extra_forbidden":
        message = f"{'.'.join(path)} is not known here, and nothing is ignored"
    elif first["type"] == "json_invalid":
        message, param = f"the body is no JSON: {first.get('ctx', {}).get('error', '')}", None
    elif first["type"] != "refused" and path:
        message = f"{'.'.join(path)}: {message}"
    return await _on_gateway_error(request, BadRequest(message, param=param))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths, methods, bodies out of bounds or not read."""
    assert isinstance(error, HTTPException)
    kind = {413: BodyTooLarge, 429: Overloaded}.get(error.status_code, BadRequest)
    told = kind(str(error.detail), status=error.status_code)
    response = await _on_gateway_error(request, told)
    response.headers.update(error.headers or {})
    return response


async def _on_defect(request: Request, error: Exception) -> Response:
    """A defect of the gateway: the framework logs it with its traceback."""
    return await _on_gateway_error(
        request, GatewayError("the gateway failed; its log has the cause")
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The framework's, without the 422 that is never answered here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = schema
    return app.openapi_schema
