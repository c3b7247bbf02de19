"""The gateway put together: which part gets which, what starts, what ends. app.py is its face."""

import asyncio
import logging
import math
import os
import random
import time
from dataclasses import dataclass

from distserve.gateway.admission import Admission, Ticket, body_bound
from distserve.gateway.client import EngineClient, make_session
from distserve.gateway.discovery import make_discovery
from distserve.gateway.dispatch import NO_ROUTE_SECONDS, Dispatcher
from distserve.gateway.errors import NoRoute
from distserve.gateway.fleet import Fleet
from distserve.gateway.janitor import Janitor
from distserve.gateway.legs import LegRunner
from distserve.gateway.metrics import Metrics
from distserve.gateway.models import Models
from distserve.gateway.parse import Parsed
from distserve.gateway.policies import NEED_INDEX, POLICIES
from distserve.gateway.prefix import PrefixIndex
from distserve.gateway.routing import RoutingOptions
from distserve.gateway.runner import Runner
from distserve.gateway.settings import Settings
from distserve.gateway.stages import StageRecorder
from distserve.gateway.strategies import router_of
from distserve.gateway.timing import PromptTiming, Window
from distserve.gateway.watch import FleetWatcher
from distserve.gateway.work import Work
from distserve.wire.auth import bearer
from distserve.wire.tracing import Span

log = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 60
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Arrival:
    """What is known of a request before its body is read."""

    request_id: str
    at: float
    """Seconds, monotonic."""
    span: Span


class Gateway:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.slo, settings.attainment_percent)
        self.window = Window()
        self.clock = time.monotonic
        self.fleet = Fleet(self.clock)
        self.discovery = make_discovery(settings.discovery)
        self.admission = Admission(self._waiting_bound, self._retry_after_seconds)
        self.metrics.waiting.set_function(lambda: self.admission.waiting)
        self.metrics.waiting_bound.set_function(self._waiting_bound)
        self.transfer_bytes: dict[str, int] = {}
        self.running: set[Work] = set()
        self.rendering = asyncio.Semaphore(1)
        """Whose turn it is to put a large answer together."""
        self.body_bytes = 0
        """Of bodies that are being read."""
        self.ending = False
        self._routed_at = -math.inf

        policy = settings.routing_policy
        indexed = policy in NEED_INDEX or settings.min_remote_prefill_tokens > 0
        self._index = PrefixIndex() if indexed else None
        self.router = router_of(settings.strategy)(
            POLICIES[policy](self._index, random.Random(os.urandom(8))),
            RoutingOptions(settings.min_remote_prefill_tokens),
        )

    async def start(self) -> None:
        self._session = make_session({"Authorization": bearer(self.settings.key)})
        client = EngineClient(self._session)
        self.models = Models(self.settings.model, self.fleet, client, self.router.complete)
        self._janitor = Janitor(client)
        self._runner = Runner(
            Dispatcher(self.router, self.fleet, on_route=self.metrics.observe_route),
            LegRunner(client, self.fleet, self._janitor),
            self._janitor,
            StageRecorder(self.metrics.observe_stage, self._observe_transfer),
        )
        loop = asyncio.get_running_loop()
        discovery = self.discovery
        discovery.heard_at = loop.time()
        self.metrics.discovery_age.set_function(lambda: loop.time() - discovery.heard_at)
        watcher = FleetWatcher(
            self.fleet,
            client,
            discovery,
            self.settings.model,
            self._index,
            self.models.meet,
        )
        self._watching = asyncio.create_task(watcher.run())
        self._watching.add_done_callback(_report_defect)

    async def close(self) -> None:
        """Bounded. Whatever still runs is told to end."""
        for work in list(self.running):
            work.fail(_ending())
        await self._janitor.close(CLOSE_SECONDS)
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._session.close()

    def begin_shutdown(self) -> None:
        """No longer ready; streams that do not end in time are ended with an error event."""
        self.ending = True
        asyncio.get_running_loop().call_later(self.settings.drain_seconds, self._fail_running)

    def _fail_running(self) -> None:
        for work in list(self.running):
            work.fail(_ending())

    @property
    def alive(self) -> bool:
        """Whether it still hears of instances. If not, that is a defect: only a restart helps."""
        return not self._watching.done()

    @property
    def ready(self) -> bool:
        """A request would be sent on at once."""
        return not self.ending and self.models.ready

    def in_service(self) -> bool:
        """Whether clients should be sent here. A request is held so long for a route: for that long
        after the last one was lost it may come. When that was is known as closely as the readiness
        probe asks, each second."""
        now = self.clock()
        if self.models.ready:
            self._routed_at = now
        return not self.ending and now - self._routed_at < NO_ROUTE_SECONDS

    def seconds_left(self, arrival: Arrival) -> float:
        """Of a request's time. Below zero where it is over."""
        return self.settings.request_timeout_seconds - (self.clock() - arrival.at)

    def take(self, parsed: Parsed, tickets: list[Ticket], arrival: Arrival) -> Work:
        """What an admitted request becomes."""
        loop = asyncio.get_running_loop()
        return Work(
            generations=parsed.generations,
            tickets=tickets,
            timings=[PromptTiming(arrival.at, self.metrics) for _ in parsed.generations],
            runner=self._runner,
            janitor=self._janitor,
            deadline=loop.time() + self.seconds_left(arrival),
            span=arrival.span,
            clock=self.clock,
        )

    def max_body_bytes(self) -> int:
        """As the model is now; the least while there is none."""
        try:
            context = self.models.current().info.max_model_len
        except NoRoute:
            context = 0
        return body_bound(self.settings.max_body_bytes, context)

    def _waiting_bound(self) -> int:
        """This gateway's share of what may wait in all of them, rounded up."""
        return -(-self.settings.max_waiting_requests // self.discovery.gateways)

    def _retry_after_seconds(self) -> int:
        """When about half of those who wait now will have begun."""
        median = self.window.quantile("ttft", 0.5, self.clock()) or 1.0
        return min(max(1, math.ceil(median)), MAX_RETRY_AFTER_SECONDS)

    def _observe_transfer(self, transport: str, moved: int) -> None:
        self.transfer_bytes[transport] = self.transfer_bytes.get(transport, 0) + moved
        self.metrics.transfers.labels(transport).inc(moved)


def _ending() -> NoRoute:
    return NoRoute("the gateway is ending: send the request again", retry_after_seconds=1)


def _report_defect(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled() and (error := watching.exception()) is not None:
        log.critical("discovery ended by a defect: /health says so", exc_info=error)
