"""Runs one leg on one instance, to its end or to its abort."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from distserve.gateway.client import ENGINE_ERRORS, EngineClient, LineTooLong
from distserve.gateway.fleet import Fleet, Flight, Member
from distserve.gateway.generation import Diverged
from distserve.gateway.janitor import Janitor
from distserve.wire.dialect import (
    Declined,
    End,
    Finish,
    Handoff,
    InstanceState,
    Leg,
    LegError,
    Phases,
    PromptScores,
    Token,
)

TAKES_NOTHING = 503
TRANSFER_FAILED = 502

Progressing = Handoff | Token | Finish | PromptScores


class LegFailed(Exception):
    """The leg is over without its end."""

    def __init__(
        self, member: Member, message: str, *, retryable: bool, status: int, answered: bool
    ) -> None:
        super().__init__(f"{member.name}: {message}")
        self.member = member
        self.message = message
        self.retryable = retryable
        self.status = status
        self.answered = answered
        """The instance said so itself; otherwise the connection failed."""
        self.suspects = frozenset({member.name})
        """Instances that another attempt should rather not use."""

    @property
    def is_own(self) -> bool:
        """The instance's own doing, and not that of the one whose KV it was to fetch: it does not
        answer, or takes nothing."""
        return not self.answered or self.status == TAKES_NOTHING

    @property
    def is_transfer(self) -> bool:
        """KV did not come from one instance to the other."""
        return self.answered and self.retryable and self.status == TRANSFER_FAILED

    @property
    def is_refusal(self) -> bool:
        """Not the leg's matter: the instance drains, shuts down, or is without its migrator."""
        return self.answered and self.status == TAKES_NOTHING


class LegDeclined(Exception):
    """The leg's condition did not hold there."""

    def __init__(self, member: Member, state: InstanceState) -> None:
        super().__init__(f"{member.name} declined")
        self.member = member
        self.state = state


@dataclass(frozen=True)
class LegRunner:
    client: EngineClient
    fleet: Fleet
    janitor: Janitor

    async def run(
        self,
        flight: Flight,
        leg: Leg,
        headers: Mapping[str, str],
        on_event: Callable[[Progressing], None],
    ) -> End:
        """Hands each event on as it comes. Raises LegFailed or LegDeclined. However this is left,
        an instance that has not ended the leg itself is told to abort it."""
        member = flight.member
        ended = False
        try:
            async with (
                _breakable(flight),
                contextlib.aclosing(self.client.leg(member.url, leg, headers)) as events,
            ):
                async for event in events:
                    match event:
                        case End():
                            ended = True
                            member.succeeded()
                            return event
                        case LegError():
                            ended = True
                            raise LegFailed(
                                member,
                                event.message,
                                retryable=event.retryable,
                                status=event.status,
                                answered=True,
                            )
                        case Declined():
                            ended = True
                            raise LegDeclined(member, event.state)
                        case _:
                            on_event(event)
            raise _broken(member, "the stream broke off")
        except Diverged as fork:
            raise _diverged(member, fork) from fork
        except ENGINE_ERRORS as error:
            if isinstance(error, LineTooLong) and leg.sampling.prompt_logprobs is not None:
                raise _too_long(member, error) from error
            failure = _broken(member, str(error) or type(error).__name__)
            self._count(flight, failure)
            raise failure from error
        except LegFailed as failure:
            self._count(flight, failure)
            raise
        finally:
            flight.land()
            if not ended:
                self.janitor.abort(member, leg.id)

    def _count(self, flight: Flight, failure: LegFailed) -> None:
        """A decode that reports a failure is often the messenger: its source may have died."""
        messenger = flight.phases is Phases.DECODE and not failure.is_own
        if failure.retryable and not messenger:
            flight.member.failed(self.fleet.clock())


def _broken(member: Member, message: str) -> LegFailed:
    return LegFailed(member, message, retryable=True, status=502, answered=False)


def _diverged(member: Member, fork: Diverged) -> LegFailed:
    """Nobody's fault."""
    failure = LegFailed(member, str(fork), retryable=True, status=500, answered=True)
    failure.suspects = frozenset()
    return failure


def _too_long(member: Member, error: LineTooLong) -> LegFailed:
    """It would be as long on any other instance."""
    cure = "ask for fewer prompt_logprobs, or of a shorter prompt"
    return LegFailed(member, f"{error}: {cure}", retryable=False, status=400, answered=True)


@contextlib.asynccontextmanager
async def _breakable(flight: Flight) -> AsyncIterator[None]:
    """While inside, `flight.break_off()` ends the body with a LegFailed."""
    task = asyncio.current_task()
    assert task is not None
    broken = False

    def break_off() -> None:
        nonlocal broken
        if not broken:
            broken = True
            task.cancel()

    flight.break_off = break_off
    try:
        yield
    except asyncio.CancelledError:
        if broken and task.uncancel() == 0:
            raise _broken(flight.member, "the instance does not answer any more") from None
        raise
    finally:
        flight.break_off = lambda: None
