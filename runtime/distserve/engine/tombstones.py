"""Ids of what was ended before it began, so that an abort that overtakes its leg wins."""

from collections import OrderedDict


class Tombstones:
    """The newest `limit` ids."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, name: str) -> None:
        self._ids[name] = None
        self._ids.move_to_end(name)
        while len(self._ids) > self._limit:
            self._ids.popitem(last=False)

    def __contains__(self, name: str) -> bool:
        return name in self._ids
