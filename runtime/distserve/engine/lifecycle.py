"""DistServe's lifetime events of one leg, kept on this process's clock and told as durations."""

from dataclasses import dataclass

from distserve.wire.dialect import Lifecycle


@dataclass(slots=True)
class Moments:
    """Seconds of the engine's clock; None until it happens. Each is the first or last of its kind,
    so a preemption does not begin a second life."""

    issued: float
    context_begin: float | None = None
    context_end: float | None = None
    migration_begin: float | None = None
    migration_end: float | None = None
    decoding_begin: float | None = None
    decoding_end: float | None = None

    @property
    def queue_seconds(self) -> float | None:
        """Until the instance did anything for the leg."""
        begun = self.context_begin if self.context_begin is not None else self.migration_begin
        return None if begun is None else begun - self.issued

    @property
    def prefill_seconds(self) -> float | None:
        return _between(self.context_begin, self.context_end)

    @property
    def decode_seconds(self) -> float | None:
        return _between(self.decoding_begin, self.decoding_end)

    def durations(self) -> Lifecycle:
        return Lifecycle(
            context_begin_ms=self._ms(self.context_begin),
            context_end_ms=self._ms(self.context_end),
            migration_begin_ms=self._ms(self.migration_begin),
            migration_end_ms=self._ms(self.migration_end),
            decoding_begin_ms=self._ms(self.decoding_begin),
            decoding_end_ms=self._ms(self.decoding_end),
        )

    def _ms(self, moment: float | None) -> float | None:
        return None if moment is None else (moment - self.issued) * 1000


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
