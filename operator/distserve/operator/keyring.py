"""Deployments' keys, read once and shown to their engines and migrators by who asks those."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from distserve.operator.asking import NotAnswered
from distserve.operator.model import Key

ReadKey = Callable[[str, str], Awaitable[bytes | None]]
"""From namespace and Secret to the deployment's key; None where there is none. Raises
ClusterError."""


class Keyring:
    def __init__(self, read: ReadKey) -> None:
        self._read = read
        self._keys: dict[Key, bytes] = {}
        self._reading = asyncio.Lock()

    async def of(self, key: Key, secret: str) -> bytes:
        """Raises NotAnswered, ClusterError."""
        async with self._reading:  # All of a unit come at once.
            if key not in self._keys:
                found = await self._read(key.namespace, secret)
                if found is None:
                    raise NotAnswered(f"there is no Secret {secret} with the deployment's key")
                self._keys[key] = found
            return self._keys[key]

    def wrong(self, key: Key, shown: bytes) -> None:
        """There may be another one: it is read again."""
        if self._keys.get(key) == shown:
            del self._keys[key]

    def release(self, key: Key) -> None:
        self._keys.pop(key, None)
