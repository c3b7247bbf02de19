"""Disaggregated: prefill and decode on instances of their own, KV cache pulled in between.

A request goes to the prefill instance with the shortest queue, first come first served; after its
first token to the decode instance with the least of its memory spoken for. That instance pulls the
KV cache when it has room for the whole context and a seat, or a little ahead of its seat; until
then the prefill instance holds it, so that bursts wait in prefill memory and push back on prefill.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

from distserve.planner.simulator import Instance, Step, blocks_for
from distserve.planner.strategies.fleet import SimulatedStrategy
from distserve.strategies.disaggregated import Pull, grant_whole, may_pull


class Disaggregated(SimulatedStrategy):
    disaggregated = True

    def build(self) -> list[Instance]:
        fleet, simulation = self.fleet, self.simulation
        assert fleet.decode is not None, "a disaggregated fleet has decode instances"
        self.prefill = [
            Instance(simulation, "prefill", i, fleet.prefill, self._choose_prefill, self.prefilled)
            for i in range(fleet.prefill_instances)
        ]
        self.decode = [
            Instance(
                simulation, "decode", i, fleet.decode, _choose_decode, self.prefilled, self._freed
            )
            for i in range(fleet.decode_instances)
        ]
        # Heard of and not yet pulled, by decode instance: (request, instance that holds it).
        self._pending: dict[Instance, deque[tuple[int, Instance]]] = {
            instance: deque() for instance in self.decode
        }
        self._pending_blocks = dict.fromkeys(self.decode, 0)
        # Pulled, and without a seat to decode yet.
        self._fetched: dict[Instance, deque[int]] = {instance: deque() for instance in self.decode}
        self._ahead_blocks = dict.fromkeys(self.decode, 0)
        slowed = fleet.prefill.serving.prefill_slowed, fleet.decode.serving.decode_slowed
        if fleet.shared_machines and any(slowed):
            for instance in self.prefill:
                instance.neighbours, instance.slowed = self.decode, slowed[0]
            for instance in self.decode:
                instance.neighbours, instance.slowed = self.prefill, slowed[1]
        return [*self.prefill, *self.decode]

    def arrive(self, request: int) -> None:
        # It was measured beside one of them: others have cores of their own.
        streams = fmean(instance.decoding for instance in self.decode)
        min(self.prefill, key=lambda instance: instance.load).submit(request, streams)
        # One of them alone, as in the deployment that was measured, which has one.
        self._least_reserved().disturb()

    def _choose_prefill(self, instance: Instance) -> Step | None:
        spec = instance.spec
        chunks = instance.take(
            grant_whole,
            spec.max_batched_tokens,
            spec.max_requests,
            lambda request: self.trace.prompt_tokens[request],
        )
        return Step(chunks) if chunks else None

    def prefilled(self, request: int, instance: Instance) -> None:
        target = self._least_reserved()
        self._pending_blocks[target] += blocks_for(self.whole_context(request))
        news_ms = target.spec.serving.busy_handover_ms
        if news_ms and target.decoding:
            at = self.simulation.now + news_ms
            self.simulation.at(at, self._heard_of, request, instance, target)
        else:
            self._heard_of(request, instance, target)

    def _heard_of(self, request: int, source: Instance, target: Instance) -> None:
        self._pending[target].append((request, source))
        self._pull(target)

    def _least_reserved(self) -> Instance:
        return min(
            self.decode, key=lambda other: other.memory.reserved + self._pending_blocks[other]
        )

    def _freed(self, instance: Instance) -> None:
        """Memory, a seat, or the place of one that was pulled ahead of it."""
        self._seat(instance)
        self._pull(instance)

    def _pull(self, instance: Instance) -> None:
        """Start the migrations that fit; one at a time on each instance's connection."""
        pending, simulation = self._pending[instance], self.simulation
        while pending:
            request, source = pending[0]
            tokens = self.whole_context(request)
            blocks = blocks_for(tokens)
            if not self._may_pull(instance, blocks):
                return
            pending.popleft()
            self._pending_blocks[instance] -= blocks
            self._ahead_blocks[instance] += blocks
            instance.memory.reserve(request, tokens)
            instance.expected += 1
            heard = instance.hears_ms
            start = max(heard, source.link_free_ms, instance.link_free_ms)
            end = start + self.fleet.migration_ms(self.trace.prompt_tokens[request])
            source.link_free_ms = instance.link_free_ms = end
            simulation.life.migration_ms[request] = start
            ready = end + instance.spec.serving.handover_ms
            if ready == heard:  # no time passes: it is in the very next step
                ready = simulation.now
            simulation.at(ready, self._migrated, request, source, instance)

    def _migrated(self, request: int, source: Instance, instance: Instance) -> None:
        self.simulation.life.migrated_ms[request] = self.simulation.now
        source.release(request)
        self._fetched[instance].append(request)
        self._freed(instance)

    def _seat(self, instance: Instance) -> None:
        """Let those decode whose KV is there, as far as seats are free."""
        fetched = self._fetched[instance]
        while fetched and instance.seats > 0:
            request = fetched.popleft()
            self._ahead_blocks[instance] -= blocks_for(self.whole_context(request))
            instance.join(request)

    def _may_pull(self, instance: Instance, blocks: int) -> bool:
        """The engine's rule. Whole contexts are reserved, so nothing grows while it decodes."""
        return may_pull(
            Pull(
                blocks=blocks,
                sequences=1,
                free_blocks=instance.memory.free,
                free_sequences=instance.spec.max_requests - instance.expected,
                running=0,
                waiting_blocks=self._ahead_blocks[instance],
                total_blocks=instance.memory.total,
            )
        )


def _choose_decode(instance: Instance) -> Step | None:
    batch = instance.take_ready()
    return Step(decode=batch) if batch else None
