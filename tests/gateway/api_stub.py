"""An API server that knows one thing, EndpointSlices, over real sockets: list, watch with versions
and bookmarks, tokens; faults happen on request. The real one has tests of its own."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from distserve.gateway.api_server import ApiServer

INSTANCES, GATEWAYS = "tiny-instances", "tiny-gateway"
"""The two Services of which it knows slices."""


def endpoint(name: str, address: str = "127.0.0.1", /, **conditions: bool) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False} | conditions,
        "targetRef": {"kind": "Pod", "name": name, "uid": name},
    }


@dataclass(eq=False)
class ApiStub:
    credentials: Path
    """Where its clients find their token."""
    token: str = "t1"
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 100
    oldest: int = 0
    """Watches from before it have lost their history."""
    refuse: tuple[int, str] | None = None
    """Every call is answered with this status and message."""
    watch_fault: str = ""
    """What watches do: end or refused (once all is told) | silent | cut | garbage"""
    garbage: bytes = b""
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    lists: int = 0
    watches: list[dict[str, str]] = field(default_factory=list)
    """What each watch asked for."""
    watching: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None
    _port: int = 0

    @property
    def api(self) -> ApiServer:
        return ApiServer(f"http://127.0.0.1:{self._port}", self.credentials)

    async def start(self) -> None:
        self.write_token()
        app = web.Application()
        path = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        app.add_routes([web.get(path, self._answer)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Connections break; what it knows stays."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def write_token(self) -> None:
        """As the kubelet: a reader sees the old or the new one."""
        new = self.credentials / "token.new"
        new.write_text(self.token)
        new.rename(self.credentials / "token")

    def put(
        self, name: str, *endpoints: dict[str, Any], port: int = 8100, service: str = INSTANCES
    ) -> None:
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": list(endpoints) or None,
            "ports": [{"name": "metrics", "port": 9}, {"name": "engine", "port": port}],
        }
        self._tell(kind, self.slices[name])

    def delete(self, name: str) -> None:
        self._tell("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        self._tell("BOOKMARK", {"metadata": {}, "kind": "EndpointSlice"})

    def say(self, kind: str, found: dict[str, Any]) -> None:
        """An event that is none of ours."""
        self._tell(kind, found)

    def forget_history(self) -> None:
        self.version += 10
        self.oldest = self.version
        self.events.clear()
        self._wake()

    def misbehave(self, fault: str) -> None:
        self.watch_fault = fault
        self._wake()

    def _tell(self, kind: str, found: dict[str, Any]) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, json.loads(json.dumps({"type": kind, "object": found}))))
        self._wake()

    def _wake(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    # ---- answers --------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.match_info["namespace"] == "n"
        asked = (INSTANCES, f"{INSTANCES},{GATEWAYS}")
        selectors = [f"kubernetes.io/service-name in ({names})" for names in asked]
        assert request.query["labelSelector"] in selectors
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if self.refuse is not None:
            return _status(*self.refuse)
        if "watch" in request.query:
            return await self._watch(request)
        self.lists += 1
        return web.json_response(
            {
                "kind": "EndpointSliceList",
                "metadata": {"resourceVersion": str(self.version)},
                "items": list(self.slices.values()) or None,
            }
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches.append(dict(request.query))
        seen = int(request.query["resourceVersion"])
        if self.watch_fault == "refused":
            return _status(410, "too old resource version")
        response = web.StreamResponse()
        await response.prepare(request)
        self.watching += 1
        try:
            with contextlib.suppress(ConnectionResetError):
                await self._stream(response, request, seen)
        finally:
            self.watching -= 1
        return response

    async def _stream(self, response: web.StreamResponse, request: web.Request, seen: int) -> None:
        while True:
            changed = self._changed
            match self.watch_fault:
                case "silent":
                    await asyncio.Event().wait()
                case "cut":
                    await response.write(b'{"type": "MODIFIED", "object": {"metadata": {"na')
                    assert request.transport is not None
                    request.transport.abort()
                    return
                case "garbage":
                    await response.write(self.garbage)
                    return
            if seen < self.oldest:
                gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                await response.write(_line({"type": "ERROR", "object": gone}))
                return
            for version, event in self.events:
                if version > seen:
                    seen = version
                    await response.write(_line(event))
            if self.watch_fault in ("end", "refused"):
                return
            await changed.wait()


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code)
