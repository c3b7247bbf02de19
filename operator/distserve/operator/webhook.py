"""Serves the validating webhook, in every replica: POST /validate over TLS.

A fault of ours lets the change pass with a warning: the reconciler looks at it again, and says so
in the deployment's conditions.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from distserve.operator.cluster import Cluster
from distserve.operator.model import Object
from distserve.operator.probes import serving
from distserve.operator.settings import MountedCertificate, WebhookSettings
from distserve.operator.tls import Identity, keep_fresh, read_files

log = logging.getLogger(__name__)

MAX_BODY_BYTES = (3 << 20) * 11 // 10
"""A review holds an object twice, and etcd takes none above 1.5 MiB; a tenth for the rest."""
SMALL_BYTES = 64 << 10
"""Most reviews are as small: bodies that say so are read at once, whoever else holds a turn."""
TOGETHER = 16
"""Larger bodies that are read at a time: anybody may send some, and they are to be a small part of
the memory of a process that may be the leader."""
READ_SECONDS = 5.0
"""For a body to have its turn and to arrive; API servers are told to wait no longer for the whole
answer."""
IDLE_SECONDS = 120.0
"""Longer than the 90 s for which API servers keep a connection for their next review: whoever ends
one sooner may do so just as a review is sent."""
PATH = "/validate"


@dataclass(frozen=True)
class Webhook:
    judge: Callable[[Object], str]
    """From an AdmissionReview's request to why it is refused; empty when it is not."""
    unready: Callable[[], str]
    """Why nothing can be judged yet, empty when it can."""
    count: Callable[[str], None] = lambda outcome: None
    """One of metrics.REVIEWS."""
    _some: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TOGETHER))

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int, tls: ssl.SSLContext) -> AsyncIterator[int]:
        """Yields the port. Raises PortTaken."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(PATH, self._validate)
        async with serving(app, host, port, IDLE_SECONDS, tls) as bound:
            yield bound

    async def _validate(self, http: web.Request) -> web.Response:
        # Of what is compressed, which API servers send nothing, the length says little.
        packed = "Content-Encoding" in http.headers
        length = http.content_length
        small = length is not None and length <= SMALL_BYTES and not packed
        turn = contextlib.nullcontext() if small else self._some
        try:
            async with asyncio.timeout(READ_SECONDS), turn:
                body = await http.read()
            review = msgspec.json.decode(body)
            uid = review["request"]["uid"]
        except TimeoutError:
            return web.Response(status=408, text=f"no body within {READ_SECONDS:g} s\n")
        except (msgspec.DecodeError, KeyError, TypeError):
            return web.Response(status=400, text="an AdmissionReview with a request is needed\n")
        answer = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": {"uid": uid, **self.respond(review["request"])},
        }
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def respond(self, request: Object) -> Object:
        """`allowed` and the words that go with it."""
        try:
            if unready := self.unready():
                return self._failed(unready)
            refused = self.judge(request)
        except Exception as error:  # whatever it is, it is not the user's
            log.exception("a review failed", extra={"deployment": request.get("name")})
            return self._failed(f"{type(error).__name__}")
        self.count("denied" if refused else "allowed")
        if not refused:
            return {"allowed": True}
        status = {"code": 422, "reason": "Invalid", "message": refused}
        return {"allowed": False, "status": status}

    def _failed(self, why: str) -> Object:
        self.count("failed")
        warning = f"distserve: not checked ({why}); see the condition Accepted"
        return {"allowed": True, "warnings": [warning]}


async def admit(
    webhook: Webhook,
    settings: WebhookSettings,
    host: str,
    cluster: Cluster,
    leads: Callable[[], bool],
) -> None:
    """Serves with a certificate that is kept fresh, until it is cancelled. Raises PortTaken."""
    identity, said = Identity(), settings.certificate
    look: Callable[[], Awaitable[None]]
    if isinstance(said, MountedCertificate):
        look = functools.partial(read_files, said.folder, identity)
    else:
        from distserve.operator.selfmade import SelfMade  # 13 MB of memory for who needs it

        look = SelfMade(said, identity, cluster, leads).look
    async with webhook.serve(host, settings.port, identity.context):
        await keep_fresh(look, identity, said.look_seconds)
