"""Blocks of the KV pool: who holds them, which are cached, which is taken next.

    free ----take----> referenced ----release, never hashed----> free
                       |   ^    `-----release, hashed----------> cached
                       |   `-----------share (a hit)------------ cached
                       `-- store: its hash is known from here on   | take, least recently used
                                                                  v
                                                              referenced (hash forgotten)

Every reference belongs to an owner (a sequence, or a transfer that reads or fills the blocks) and
an owner's references are its table, so a leak has a name. All operations on one block are O(1).

A hit trusts the hash: 128 bits of blake2b over the chain of all tokens before it and the tenant's
salt. Nobody can search for a collision cheaper than 2^64 blocks, and a comparison of token ids
would not tell two different prefixes with equal last blocks apart either.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

Owner = str


class OutOfBlocks(Exception):
    """Asked for more than `available`; callers look before they take."""


class IntegrityError(AssertionError):
    """Blocks are lost, doubled, or held by an owner that does not live: a bug."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a block's content before the step that writes into it."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class CacheChanges:
    """Hashes that entered and left the prefix cache; what did both is in neither."""

    stored: list[bytes]
    removed: list[bytes]

    def __bool__(self) -> bool:
        return bool(self.stored or self.removed)


class BlockManager:
    def __init__(self, total: int, block_tokens: int, *, caching: bool = True) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self.caching = caching
        self._free = deque(range(total))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._references = [0] * total
        self._tables: dict[Owner, list[int]] = {}
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._changed: dict[bytes, bool] = {}  # hash -> is stored now

    @property
    def available(self) -> int:
        """Free or cached: what a taker can have."""
        return len(self._free) + len(self._cached)

    @property
    def held(self) -> int:
        return self.total - self.available

    @property
    def owners(self) -> Collection[Owner]:
        return self._tables.keys()

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def table(self, owner: Owner) -> list[int]:
        """The owner's blocks in order of its tokens. Not to be changed by the caller."""
        return self._tables.get(owner, [])

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached prefix. Nothing is held yet."""
        found: list[int] = []
        for key in hashes:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of them nobody holds: sharing these makes as many fewer available."""
        return sum(not self._references[block] for block in blocks)

    def share(self, owner: Owner, blocks: Iterable[int]) -> None:
        """Hold blocks that are cached or that others hold, appended to the owner's table."""
        table = self._tables.setdefault(owner, [])
        for block in blocks:
            if not self._references[block]:
                del self._cached[block]
            self._references[block] += 1
            table.append(block)

    def take(self, owner: Owner, count: int) -> list[int]:
        """Hold `count` more blocks of one's own. Raises OutOfBlocks and then takes none."""
        if count > self.available:
            raise OutOfBlocks(f"{owner} wants {count} blocks, {self.available} are available")
        taken = [self._pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        self._tables.setdefault(owner, []).extend(taken)
        return taken

    def is_shared(self, owner: Owner, index: int) -> bool:
        return self._references[self._tables[owner][index]] > 1

    def make_own(self, owner: Owner, index: int) -> Copy:
        """Exchange a shared block of the table for a new one; the caller copies before writing.
        Raises OutOfBlocks."""
        table = self._tables[owner]
        source = table[index]
        [target] = self.take(owner, 1)
        table.pop()
        table[index] = target
        self._drop(source)
        return Copy(source, target)

    def release(self, owner: Owner) -> None:
        """Let go of all the owner holds; last block first, so that a prefix outlives its tail."""
        for block in reversed(self._tables.pop(owner, ())):
            self._drop(block)

    def store(self, block: int, key: bytes) -> None:
        """The held block is full and computed: others may share it under its hash. Content that
        another block already has under this hash stays with that one."""
        if not self.caching or key in self._block_of or block in self._hash_of:
            return
        self._block_of[key] = block
        self._hash_of[block] = key
        self._note(key, stored=True)

    def take_changes(self) -> CacheChanges:
        changed, self._changed = self._changed, {}
        return CacheChanges(
            stored=[key for key, stored in changed.items() if stored],
            removed=[key for key, stored in changed.items() if not stored],
        )

    def check_integrity(self, live: Collection[Owner] | None = None) -> None:
        """Raise IntegrityError unless distinct free + cached + referenced = total, references are
        what the owners' tables say, and each owner is one of `live`."""
        free, cached = set(self._free), set(self._cached)
        counted: dict[int, int] = {}
        for table in self._tables.values():
            for block in table:
                counted[block] = counted.get(block, 0) + 1
        problems = [
            ("free blocks are doubled", len(free) != len(self._free)),
            ("a block is in two places", bool(free & cached or (free | cached) & counted.keys())),
            ("blocks are lost", len(free) + len(cached) + len(counted) != self.total),
            (
                "references and tables differ",
                any(self._references[b] != counted.get(b, 0) for b in range(self.total)),
            ),
            ("a cached block has no hash", not cached <= self._hash_of.keys()),
            ("a free block has a hash", bool(free & self._hash_of.keys())),
            (
                "hashes and blocks differ",
                {b: h for h, b in self._block_of.items()} != self._hash_of,
            ),
        ]
        if live is not None:
            dead = sorted(set(self._tables) - set(live))
            problems.append((f"owners do not live: {', '.join(dead)}", bool(dead)))
        if found := [name for name, is_bad in problems if is_bad]:
            raise IntegrityError("; ".join(found))

    def _pop(self) -> int:
        if self._free:
            return self._free.popleft()
        block, _ = self._cached.popitem(last=False)
        key = self._hash_of.pop(block)
        del self._block_of[key]
        self._note(key, stored=False)
        return block

    def _note(self, key: bytes, *, stored: bool) -> None:
        if self._changed.get(key, stored) != stored:
            del self._changed[key]
        else:
            self._changed[key] = stored

    def _drop(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._free.append(block)
