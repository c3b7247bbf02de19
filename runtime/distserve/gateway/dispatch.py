"""Gives each waiting generation its route, and counts what it sent where."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from distserve.gateway.errors import NoRoute
from distserve.gateway.fleet import Fleet, Flight
from distserve.gateway.generation import Generation
from distserve.gateway.routing import Route, Router, Stop, Wait, Waiting, choose

NO_ROUTE_SECONDS = 15.0
"""How long a request waits for an instance to get ready: a restart of a pod's container is over
by then, anything longer the client should know."""
RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, eq=False)
class Dispatched:
    """A route that was taken: each stop has its flight, landed on leaving the context."""

    stops: tuple[tuple[Stop, Flight], ...]

    def __enter__(self) -> "Dispatched":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for _, flight in self.stops:
            flight.land()


@dataclass(eq=False)
class _Entry:
    waiting: Waiting
    taken: asyncio.Future[Dispatched] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    reason: str = "no instance is ready"


class Dispatcher:
    def __init__(
        self,
        router: Router,
        fleet: Fleet,
        wait_seconds: float = NO_ROUTE_SECONDS,
        on_route: Callable[[Route], None] = lambda route: None,
    ) -> None:
        self._router = router
        self._on_route = on_route
        self._fleet = fleet
        self._wait_seconds = wait_seconds
        self._entries: dict[Waiting, _Entry] = {}
        self._due: asyncio.TimerHandle | None = None
        fleet.on_change(self.ask)

    async def dispatch(
        self,
        generation: Generation,
        choices: int,
        avoid: frozenset[str],
        prior_tokens: int,
        fingerprint: str,
    ) -> Dispatched:
        """Waits for a route, with a bound. Raises NoRoute."""
        waiting = Waiting(
            generation, self._fleet.clock(), avoid, prior_tokens, choices, fingerprint
        )
        entry = self._entries[waiting] = _Entry(waiting)
        try:
            self.ask()
            async with asyncio.timeout(self._wait_seconds):
                return await asyncio.shield(entry.taken)
        except TimeoutError:
            _undo(entry)
            raise NoRoute(entry.reason, retry_after_seconds=RETRY_AFTER_SECONDS) from None
        except asyncio.CancelledError:
            _undo(entry)
            raise
        finally:
            self._entries.pop(waiting, None)

    def ask(self) -> None:
        """Ask the router for everyone who waits: on arrival, on change, and when due."""
        if not self._entries:
            return
        due: list[float] = []
        waits: dict[str, Wait] = {}
        for waiting in self._router.order(list(self._entries), self._fleet):
            entry = self._entries[waiting]
            if entry.taken.done():
                continue
            tokenizer = waiting.generation.tokenizer
            answer = waits.get(tokenizer) or choose(self._router, waiting, self._fleet)
            if isinstance(answer, Wait):
                entry.reason = answer.reason
                if answer.again_seconds is not None:
                    due.append(answer.again_seconds)
                else:
                    waits[tokenizer] = answer
            else:
                entry.taken.set_result(_take(answer, waiting))
                self._on_route(answer)
        if self._due is not None:
            self._due.cancel()
        loop = asyncio.get_running_loop()
        self._due = loop.call_later(min(due), self.ask) if due else None


def _undo(entry: _Entry) -> None:
    """A route was given in the moment when nobody waited any more."""
    if entry.taken.done():
        with entry.taken.result():
            pass
    else:
        entry.taken.cancel()


def _take(route: Route, waiting: Waiting) -> Dispatched:
    """Counted at once: the next choice already sees it."""
    attempt = secrets.token_hex(12)
    stops = []
    for stop in route.stops:
        flight = Flight(
            leg=f"{attempt}-{stop.phases}",
            member=stop.member,
            phases=stop.phases,
            prompt_tokens=waiting.context_tokens,
            output_tokens=waiting.output_tokens,
            seats=waiting.choices,
        )
        stop.member.take_off(flight)
        stops.append((stop, flight))
    return Dispatched(tuple(stops))
