"""One instance: a pipeline, its KV memory, and the requests that wait, decode or are in flight.

  arrive -> waiting -> [ prefill steps ] -> strategy.prefilled -> ready -> [ decode steps ] -> end
                                                  |                 ^
                                                  `-- migration ----'   (another instance)

A batch crosses the pipeline as it was formed: stage s starts it when both the batch has left stage
s - 1 and the batch before it has left stage s. New batches form when the first stage is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from distserve.planner.batch import DecodeBatch
from distserve.planner.series import series_ms, steps_until
from distserve.planner.simulator.kv_blocks import KvBlocks, blocks_for
from distserve.planner.simulator.simulation import Simulation, StepRecord
from distserve.planner.simulator.steps import Chunk, InstanceSpec, Step
from distserve.planner.spread import PREFILLS
from distserve.strategies.budget import Grant, Prompt, Room


class Instance:
    """`choose` is the strategy's decision: the next step of this instance, or None."""

    def __init__(
        self,
        simulation: Simulation,
        role: str,
        number: int,
        spec: InstanceSpec,
        choose: Callable[[Instance], Step | None],
        prefilled: Callable[[int, Instance], None],
        released: Callable[[Instance], None] | None = None,
    ) -> None:
        self.simulation = simulation
        self.name = f"{role}-{number}"
        self.number = number
        self.spec = spec
        self.memory = KvBlocks(spec)
        self.waiting: deque[int] = deque()
        self.ready = DecodeBatch(simulation.due, simulation.base)
        self.coming = 0
        """Requests that were sent here and are not queued yet."""
        self.prefilling = 0
        """Requests whose prefill is in flight."""
        self.decoding = 0
        """Requests that decode here, in flight or ready."""
        self.expected = 0
        """Requests that decode here or are on their way."""
        self.link_free_ms = 0.0
        self.busy_ms = 0.0
        self.neighbours: Sequence[Instance] = ()
        """Whose computing slows this one's; they have it among theirs."""
        self.slowed = 0.0
        """Share by which a step takes longer while all of them compute."""
        self._choose = choose
        self._prefilled = prefilled
        self._released = released
        self._stage_free_ms = [0.0] * spec.pp
        self._alone: Step | None = None  # a decode step that may be cut short
        self._under_way: Step | None = None  # any other, where the pipeline has one stage
        self._comes_ms = 0.0  # the last of those who are on their way
        self._joined = 0
        self._came = 0
        self._prefills = 0
        self._told_busy = False
        self._ending = False
        self._prefilled_tokens: dict[int, int] = {}

    def release(self, request: int) -> None:
        """Free a request's memory and look for work that waited for it."""
        self.memory.release(request)
        if self._released:
            self._released(self)
        self.wake()

    # -- requests

    def submit(self, request: int, streams: float = 0) -> None:
        """Queue a request for prefill, behind those who are on their way; others of this instant
        queue before a step begins. `streams`: that decode where it comes."""
        now, others = self.simulation.now, self.coming
        self.coming += 1
        self._comes_ms = max(self._comes_ms, now + self.spec.serving.way_ms(request, streams))
        if others or self._comes_ms > now:
            self.simulation.at(self._comes_ms, self._queue, request)
        else:
            self._queue(request)

    def _queue(self, request: int) -> None:
        self.coming -= 1
        self.waiting.append(request)
        self.disturb()
        self.simulation.at(self.simulation.now, self.wake)

    def join(self, request: int) -> None:
        """Let a prefilled request, whose memory is reserved here, decode."""
        trace = self.simulation.trace
        prompt, steps = trace.prompt_tokens[request], trace.output_tokens[request] - 1
        self.simulation.life.decode_ms[request] = self.simulation.now
        self.ready.join(request, prompt, steps)
        self.decoding += 1
        self._joined += 1
        self.wake()

    def disturb(self) -> None:
        """A request comes: a decode step under way is the longer for it, else the next step begins
        later. Where batches follow each other through a pipeline, their next one is longer."""
        if not (self.decoding and self.spec.serving.coming_ms):
            return
        self._came += 1
        if self._alone is not None:
            self._cut_short(self._alone)
        step = self._under_way
        if step is not None and step.decode is not None:
            self._put_off(step, step.pace * self._coming_ms())
        else:
            self.wake()

    @property
    def hears_ms(self) -> float:
        """When the engine attends to what others tell it: between two steps. Where nothing was
        measured of a deployment, at once."""
        if not self.spec.serving or self._ending:
            return self.simulation.now
        if (step := self._alone) is not None:
            return step.start_ms + self._rounds_ms(step, self._rounds_begun(step))
        return max(self.simulation.now, self._stage_free_ms[-1])

    @property
    def seats(self) -> int:
        """Requests that may still join those that prefill or decode here."""
        return self.spec.max_requests - self.prefilling - self.decoding

    @property
    def load(self) -> int:
        """Requests that wait or are in prefill here, or will."""
        return self.coming + len(self.waiting) + self.prefilling

    def take(
        self, grant: Grant, tokens: int, seats: int, tokens_to_hold: Callable[[int], int]
    ) -> list[Chunk]:
        """Prompts, or pieces of them, from the head of the queue, as `grant` gives them room.

        `tokens_to_hold` is the memory that a request takes when it begins.
        """
        prompts = self.simulation.trace.prompt_tokens
        chunks: list[Chunk] = []
        while self.waiting:
            request = self.waiting[0]
            start = self._prefilled_tokens.get(request, 0)
            missing = prompts[request] - start
            blocks = 0 if start else blocks_for(tokens_to_hold(request))
            room = Room(tokens, seats, self.memory.free, untouched=not chunks)
            granted = grant(Prompt(missing, 0 if start else 1, blocks), room)
            if granted == 0:
                break
            if start == 0:
                self.memory.reserve(request, tokens_to_hold(request))
                seats -= 1
            chunks.append(Chunk(request, start, granted))
            tokens -= granted
            if granted == missing:
                self.waiting.popleft()
                self._prefilled_tokens.pop(request, None)
            else:
                self._prefilled_tokens[request] = start + granted
        return chunks

    def take_ready(self) -> DecodeBatch | None:
        """Every request that can decode now, as one batch."""
        if not self.ready.size:
            return None
        batch = self.ready
        self.ready = DecodeBatch(self.simulation.due, self.simulation.base)
        return batch

    # -- steps

    def wake(self) -> None:
        """Something changed: begin a step, or end a long decode advance at its next step."""
        if self._ending:
            return  # a step begins when all that this one ends has been seen to
        if self._alone is not None:
            self._cut_short(self._alone)
        elif self._stage_free_ms[0] <= self.simulation.now:
            self._begin()

    def _begin(self) -> None:
        if self._stage_free_ms[0] > self.simulation.now or self._alone is not None:
            return
        if self._came and self.spec.pp == 1:
            self._hear()
        elif (step := self._choose(self)) is not None:
            self._start(step)
        self._tell_neighbours()

    def _hear(self) -> None:
        """Who comes meanwhile may be in the step that follows, too."""
        now, pace = self.simulation.now, self.spec.serving.pace
        coming_ms = pace.at(now, False, self.number) * self._coming_ms()
        self.busy_ms += coming_ms
        self._stage_free_ms[0] = now + coming_ms
        self.simulation.at(now + coming_ms, self._begin)

    def _start(self, step: Step) -> None:
        now, pp = self.simulation.now, self.spec.pp
        requests_ms = self._requests_ms(step)
        serving = self.spec.serving
        step.machine_pace = serving.pace.at(now, bool(step.chunks), self.number)
        if step.chunks and not step.decode:
            step.machine_pace *= serving.prefill_spread.at(self._prefills, PREFILLS, self.number)
            self._prefills += 1
        step.pace = self._pace(step)
        stage_ms = step.pace * (self._measure(step) + requests_ms)
        step.start_ms = now
        step.first_ms = stage_ms
        free = self._stage_free_ms
        alone = not step.chunks and not requests_ms and not self.simulation.step_by_step
        if free[-1] <= now and alone:
            self._advance_alone(step)
            return
        step.end_ms = free[0] = now + stage_ms
        for stage in range(1, pp):
            step.end_ms = free[stage] = max(step.end_ms, free[stage]) + stage_ms
        self._under_way = step if pp == 1 else None
        self._tell_end(step)
        if pp > 1:
            self.simulation.at(free[0], self._begin)

    def _requests_ms(self, step: Step) -> float:
        """Of one stage of a decode step, for those whose first one it is, and who have come."""
        if step.decode is None:
            return 0.0
        serving = self.spec.serving
        joined, self._joined = self._joined, 0
        joining_ms = serving.among(self.decoding) * serving.joining_ms * joined / self.spec.pp
        return joining_ms + self._coming_ms()

    def _coming_ms(self) -> float:
        serving = self.spec.serving
        came, self._came = self._came, 0
        return serving.among(self.decoding) * serving.coming_ms * came / self.spec.pp

    def _measure(self, step: Step) -> float:
        """Time of one stage; marks the requests' first steps."""
        life = self.simulation.life
        tokens = squared = prompts = 0
        for chunk in step.chunks:
            if chunk.start == 0:
                life.prefill_ms[chunk.request] = self.simulation.now
                self.prefilling += 1
                prompts += 1
            tokens += chunk.tokens
            squared += chunk.squared_tokens
        if step.decode is not None:
            step.decode_requests = step.decode.size
            step.context_tokens = step.decode.context_tokens
        step_ms = self.spec.times.mixed_ms(
            tokens, squared, step.decode_requests, step.context_tokens, self.spec.pp
        )
        serving = self.spec.serving
        added_ms = serving.prompt_ms * prompts
        if serving.padding_ms and step.decode is not None:
            added_ms += serving.padding_ms * step.decode.padding_tokens
        return step_ms + added_ms / self.spec.pp

    def _advance_alone(self, step: Step) -> None:
        """The batch is all there is in the pipeline: plan all its rounds up to the next finish as
        one event; `wake` may cut them short."""
        assert step.decode is not None
        size = step.decode_requests
        step.growth_ms = step.pace * size * self.spec.times.decode(size).b / self.spec.pp
        step.rounds = step.decode.rounds_to_next_finish
        pace = self.spec.serving.pace
        if pace and step.first_ms > 0:  # those that begin before it changes
            left_ms = pace.left_ms(step.start_ms) / self.spec.pp
            step.rounds = min(step.rounds, steps_until(left_ms, step.first_ms, step.growth_ms))
        self._alone = step
        end = step.start_ms + self._rounds_ms(step, step.rounds)
        self._stage_free_ms = [end] * self.spec.pp
        self.simulation.at(end, self._end_alone, step)

    def _rounds_ms(self, step: Step, rounds: int) -> float:
        """Time that a batch alone in the pipeline takes for its first `rounds` rounds."""
        return self.spec.pp * series_ms(rounds, step.first_ms, step.growth_ms)

    def _rounds_begun(self, step: Step) -> int:
        passed_ms = (self.simulation.now - step.start_ms) / self.spec.pp
        return min(steps_until(passed_ms, step.first_ms, step.growth_ms), step.rounds)

    def _cut_short(self, step: Step) -> None:
        """Let the round that is under way be the last, and others follow it into the pipeline."""
        simulation, pp = self.simulation, self.spec.pp
        rounds = self._rounds_begun(step)
        stage_ms = step.stage_ms(rounds)
        end = max(step.start_ms + self._rounds_ms(step, rounds), simulation.now)
        step.rounds = rounds
        self._alone = None
        self._stage_free_ms = [end - (pp - 1 - stage) * stage_ms for stage in range(pp)]
        step.end_ms = end
        self._under_way = step if pp == 1 else None
        self._tell_end(step)
        if pp > 1:
            simulation.at(max(self._stage_free_ms[0], simulation.now), self._begin)

    def _end_alone(self, step: Step) -> None:
        if self._alone is step:  # else it was cut short meanwhile
            self._alone = None
            self._end(step, step.ends_told)

    def _tell_end(self, step: Step) -> None:
        step.ends_told += 1
        self.simulation.at(step.end_ms, self._end, step, step.ends_told)

    def _end(self, step: Step, told: int) -> None:
        if told != step.ends_told:
            return  # it was put off, or brought forward
        simulation = self.simulation
        self._under_way = None
        duration = series_ms(step.rounds, step.first_ms, step.growth_ms) + step.late_ms
        self.busy_ms += duration
        if simulation.log is not None:
            simulation.log.append(
                StepRecord(
                    step.start_ms,
                    simulation.now,
                    self.name,
                    sum(chunk.tokens for chunk in step.chunks),
                    step.decode_requests,
                    step.context_tokens,
                    step.rounds,
                )
            )
        self._ending = True
        if step.decode is not None:
            finished = step.decode.advance(step.rounds)
            self.ready.absorb(step.decode)
            self.decoding -= len(finished)
            self.expected -= len(finished)
            for request in finished:
                simulation.finish(request)
                self.release(request)
        for chunk in step.chunks:
            if chunk.start + chunk.tokens == simulation.trace.prompt_tokens[chunk.request]:
                self._end_prefill(chunk.request)
        self._ending = False
        self._begin()

    # -- neighbours

    @property
    def _computes(self) -> bool:
        return self._alone is not None or self._stage_free_ms[-1] > self.simulation.now

    def _pace(self, step: Step) -> float:
        if not self.neighbours:
            return step.machine_pace
        computing = sum(neighbour._told_busy for neighbour in self.neighbours)
        return step.machine_pace * (1.0 + self.slowed * computing / len(self.neighbours))

    def _tell_neighbours(self) -> None:
        """Those who compute beside this one are slower from now on, or no more."""
        if not self.neighbours or self._told_busy == self._computes:
            return
        self._told_busy = self._computes
        for neighbour in self.neighbours:
            neighbour._change_pace()

    def _change_pace(self) -> None:
        """What is left of a step under way takes as long as it does beside who computes now. Where
        batches follow each other through a pipeline, it is the next that does."""
        if self._alone is not None and self._alone.pace != self._pace(self._alone):
            self._cut_short(self._alone)
        step = self._under_way
        if step is None or step.pace == (pace := self._pace(step)):
            return
        left_ms = step.end_ms - self.simulation.now
        self._put_off(step, left_ms * (pace / step.pace - 1))
        step.pace = pace

    def _put_off(self, step: Step, late_ms: float) -> None:
        """The end of the step under way; or bring it forward."""
        step.late_ms += late_ms
        step.end_ms += late_ms
        self._stage_free_ms[0] = step.end_ms
        self._tell_end(step)

    def _end_prefill(self, request: int) -> None:
        self.prefilling -= 1
        self.simulation.first_token(request)
        if self.simulation.trace.output_tokens[request] == 1:
            self.simulation.finish(request)
            self.release(request)
        else:
            self._prefilled(request, self)
