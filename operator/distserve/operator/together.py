"""Calls of one reconcile, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from distserve.operator.errors import LeaseLost

T = TypeVar("T")

TOGETHER = 6
"""At a time: writes of one reconcile wait for the API server's disk one beside another, and four
workers leave connections for the lease and for listings."""


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Each to its end, TOGETHER at a time; then raises the first error. A lost lease goes first: it
    ends the process."""
    some = asyncio.Semaphore(TOGETHER)

    async def one(call: Awaitable[T]) -> T:
        async with some:
            return await call

    found = await asyncio.gather(*map(one, calls), return_exceptions=True)
    errors = [error for error in found if isinstance(error, BaseException)]
    for error in sorted(errors, key=lambda error: not isinstance(error, LeaseLost)):
        raise error
    return [result for result in found if not isinstance(result, BaseException)]
