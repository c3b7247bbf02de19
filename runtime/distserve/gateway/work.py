"""A client's request while it runs: its generations side by side, their outputs in one queue."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from distserve.gateway.admission import Ticket
from distserve.gateway.errors import DeadlineExceeded, GatewayError, ServerFault
from distserve.gateway.generation import Emitted, Generation, Progress
from distserve.gateway.janitor import Janitor
from distserve.gateway.job import Job
from distserve.gateway.runner import Runner
from distserve.gateway.stages import lifecycle_seconds
from distserve.gateway.timing import PromptTiming
from distserve.wire.dialect import Token
from distserve.wire.tracing import Span

log = logging.getLogger(__name__)

LIFECYCLE_SECONDS = 2.0


@dataclass(frozen=True)
class Output:
    prompt: int
    """Place in the batch."""
    event: Emitted


@dataclass(eq=False)
class Work:
    """Runs while its context is open. Left before the end, by whatever way, it is cancelled, and
    the engines are told; left at the end, the legs may say their last words."""

    generations: list[Generation]
    tickets: list[Ticket]
    timings: list[PromptTiming]
    runner: Runner
    janitor: Janitor
    deadline: float
    span: Span
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        # Unbounded, but no more than max_tokens x n outputs are ever in it, and of their
        # log-probabilities no more than parse.MAX_SCORES.
        self._outputs: asyncio.Queue[Output | GatewayError] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._jobs: list[Job] = []

    async def __aenter__(self) -> "Work":
        prompts = zip(self.generations, self.tickets, self.timings, strict=True)
        for generation, ticket, timing in prompts:
            progress = Progress(generation.choices, partial(self._emit, generation.index))
            job = Job(generation, progress, timing.arrived, self.deadline, self.span)
            self._jobs.append(job)
            self._tasks.append(asyncio.create_task(self._run(job, ticket)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            if not self._finished:
                task.cancel()
            self.janitor.linger(task)
        for ticket in self.tickets:
            ticket.leave()

    @property
    def _finished(self) -> bool:
        return all(not job.progress.unfinished for job in self._jobs)

    def fail(self, error: GatewayError) -> None:
        """End it from outside: whoever reads the outputs gets the error."""
        self._outputs.put_nowait(error)

    async def outputs(self) -> AsyncGenerator[list[Output], None]:
        """All there is, whenever there is any. Raises GatewayError."""
        while True:
            ready = [await self._outputs.get()]
            while not self._outputs.empty():
                ready.append(self._outputs.get_nowait())
            good: list[Output] = []
            for output in ready:
                if isinstance(output, GatewayError):
                    if good:
                        yield good
                    raise output
                good.append(output)
            yield good
            if self._finished and self._outputs.empty():
                return

    async def lifecycles(self) -> list[dict[str, float]]:
        """Of each prompt, in ms since the request came: legs tell it with their last words, a
        moment after the last token. What is not told in time is missing."""
        await asyncio.wait(self._tasks, timeout=LIFECYCLE_SECONDS)
        return [
            {
                f"{name}_ms": round((at - timing.arrived) * 1000, 3)
                for name, at in lifecycle_seconds(job.reports).items()
            }
            for job, timing in zip(self._jobs, self.timings, strict=True)
        ]

    def _emit(self, prompt: int, event: Emitted) -> None:
        if isinstance(event, Token):
            self.timings[prompt].token(event.choice, self.clock())
            self.tickets[prompt].leave()
        self._outputs.put_nowait(Output(prompt, event))

    async def _run(self, job: Job, ticket: Ticket) -> None:
        try:
            async with asyncio.timeout_at(self.deadline):
                await self.runner.run(job)
        except TimeoutError:
            self.fail(DeadlineExceeded("the request took longer than --request-timeout allows"))
        except GatewayError as error:
            self.fail(error)
        except Exception:
            log.exception("a generation failed in the gateway")
            self.fail(ServerFault("the gateway failed; its log has the cause"))
        finally:
            ticket.leave()
