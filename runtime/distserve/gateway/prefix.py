"""Which instance has which blocks cached, as their `GET /kv-events` tell it."""

from collections.abc import Sequence

from distserve.wire.dialect import KvEvent


class EventGap(Exception):
    """Events were missed: what is known of the instance is void, reconnect."""


class PrefixIndex:
    """Block hashes per instance. A hash names all tokens before its block as well, so the cached
    prefix of a prompt is the leading run of its hashes that the instance has."""

    def __init__(self) -> None:
        self._hashes: dict[str, set[bytes]] = {}
        self._last: dict[str, tuple[int, int]] = {}

    def apply(self, instance: str, event: KvEvent) -> None:
        """Raises EventGap, after forgetting the instance."""
        last = self._last.get(instance)
        if event.reset:
            self._hashes[instance] = set()
        elif last is None or (event.epoch, event.sequence) != (last[0], last[1] + 1):
            self.forget(instance)
            raise EventGap(f"{instance}: event {event.epoch}/{event.sequence} after {last}")
        self._last[instance] = (event.epoch, event.sequence)
        known = self._hashes[instance]
        known.difference_update(map(bytes.fromhex, event.removed))
        known.update(map(bytes.fromhex, event.stored))

    def forget(self, instance: str) -> None:
        self._hashes.pop(instance, None)
        self._last.pop(instance, None)

    def cached_blocks(self, instance: str, hashes: Sequence[bytes]) -> int:
        known = self._hashes.get(instance)
        if not known:
            return 0
        for count, block in enumerate(hashes):
            if block not in known:
                return count
        return len(hashes)
