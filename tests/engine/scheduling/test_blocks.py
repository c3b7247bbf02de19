"""The block manager under any sequence of operations: nothing is lost, doubled or mixed up."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from distserve.engine.blocks import BlockManager, IntegrityError, OutOfBlocks
from distserve.wire.hashing import chain

TOTAL = 12
TENANTS = ("", "tenant")


class Blocks(RuleBasedStateMachine):
    """Owners hold chains of hashed blocks; the model remembers which hash each block got last."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(TOTAL, 4)
        self.tables: dict[str, list[int]] = {}
        self.hash_of: dict[int, bytes] = {}
        self.known: set[bytes] = set()
        self.made = 0

    @rule(target=owners)
    def new_owner(self) -> str:
        self.made += 1
        name = f"owner-{self.made}"
        self.tables[name] = []
        return name

    @rule(owner=owners, count=st.integers(0, 5))
    def take(self, owner: str, count: int) -> None:
        table = self.tables.setdefault(owner, [])
        available = self.manager.available
        if count > available:
            with pytest.raises(OutOfBlocks):
                self.manager.take(owner, count)
            assert self.manager.available == available
            return
        taken = self.manager.take(owner, count)
        assert len(taken) == count
        held = {block for blocks in self.tables.values() for block in blocks}
        assert not held & set(taken), "a held block was given away"
        for block in taken:
            self.hash_of.pop(block, None)
        table += taken

    @rule(owner=owners, tenant=st.sampled_from(TENANTS), seed=st.integers(0, 1))
    def fill(self, owner: str, tenant: str, seed: int) -> None:
        """The owner's blocks become full of a text that others may have as well."""
        table = self.tables.setdefault(owner, [])
        hashes = chain([seed] * 4 * len(table), 4, tenant)
        for block, key in zip(table, hashes, strict=True):
            if key not in self.hash_of.values() and block not in self.hash_of:
                self.hash_of[block] = key
            self.manager.store(block, key)

    @rule(owner=owners, tenant=st.sampled_from(TENANTS), seed=st.integers(0, 1))
    def hit(self, owner: str, tenant: str, seed: int) -> None:
        hashes = list(chain([seed] * 4 * 6, 4, tenant))
        found = self.manager.match(hashes)
        assert [self.hash_of[block] for block in found] == hashes[: len(found)]
        free = [b for b in found if not any(b in t for t in self.tables.values())]
        assert self.manager.unheld(found) == len(free)
        self.manager.share(owner, found)
        self.tables.setdefault(owner, []).extend(found)

    @rule(owner=owners, other=owners)
    def fork(self, owner: str, other: str) -> None:
        table = list(self.tables.setdefault(owner, []))
        self.manager.share(other, table)
        self.tables.setdefault(other, []).extend(table)

    @precondition(lambda self: self.manager.available)
    @rule(owner=owners, data=st.data())
    def make_own(self, owner: str, data: Any) -> None:
        table = self.tables.setdefault(owner, [])
        if not table:
            return
        index = data.draw(st.integers(0, len(table) - 1))
        if self.manager.is_shared(owner, index):
            copy = self.manager.make_own(owner, index)
            assert copy.source == table[index]
            table[index] = copy.target
            self.hash_of.pop(copy.target, None)

    @rule(owner=owners)
    def release(self, owner: str) -> None:
        self.manager.release(owner)
        self.tables[owner] = []

    @invariant()
    def tables_are_as_told(self) -> None:
        for owner, table in self.tables.items():
            assert list(self.manager.table(owner)) == table
        held = {block for table in self.tables.values() for block in table}
        assert self.manager.available == TOTAL - len(held)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.manager.check_integrity(self.tables)

    @invariant()
    def events_tell_what_is_cached(self) -> None:
        changes = self.manager.take_changes()
        assert not self.known & set(changes.stored)
        assert set(changes.removed) <= self.known
        self.known = (self.known | set(changes.stored)) - set(changes.removed)
        assert self.known == set(self.hash_of.values())


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_tail_of_a_prefix_is_taken_before_its_head() -> None:
    blocks = BlockManager(4, 4)
    hashes = list(chain(range(16), 4))
    for block, key in zip(blocks.take("a", 4), hashes, strict=True):
        blocks.store(block, key)
    blocks.release("a")
    blocks.take("b", 2)
    assert len(blocks.match(hashes)) == 2


def test_least_recently_used_goes_first() -> None:
    blocks = BlockManager(3, 4)
    for owner in "abc":
        blocks.store(blocks.take(owner, 1)[0], owner.encode())
    for owner in "abc":
        blocks.release(owner)
    blocks.share("again", blocks.match([b"a"]))
    blocks.release("again")
    blocks.take("new", 2)
    assert blocks.match([b"a"])
    assert not blocks.match([b"b"])
    assert not blocks.match([b"c"])


def test_a_leak_has_a_name() -> None:
    blocks = BlockManager(4, 4)
    blocks.take("sequence:gone#0", 2)
    blocks.check_integrity({"sequence:gone#0"})
    with pytest.raises(IntegrityError, match="sequence:gone#0"):
        blocks.check_integrity(set())
