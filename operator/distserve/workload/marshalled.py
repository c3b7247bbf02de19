"""Parses the few types of Python's marshal format that `.ds` files are made of. Called by readers.

`marshal.loads` must not see a file that somebody else made: it crashes on malformed input and
builds code objects. This parser knows lists, tuples, dicts, texts, numbers, booleans and None,
checks every length against the bytes that are left, and refuses all else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_REFERENCED = 0x80  # flag of an object that later ones may refer to by its number
_MAX_DEPTH = 16
_END = object()  # the mark behind a dict's last pair
_OPEN = object()  # stands for a container that is being filled
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_FLOAT = struct.Struct("<d")
_DIGIT_BITS = 15
_MAX_DIGITS = 8  # of a big integer: 120 bits, more than any length or time has


class MarshalError(ValueError):
    """The bytes are no marshalled data of these types."""


def parse(raw: bytes) -> Any:
    """The one object in `raw`; raises MarshalError."""
    parser = _Parser(raw)
    found = parser.value(0)
    if parser.at != len(raw):
        raise MarshalError(f"{len(raw) - parser.at} bytes too many at the end")
    return found


class _Parser:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.known: list[Any] = []
        self.readers: dict[int, Callable[[], Any]] = {
            ord("N"): lambda: None,
            ord("T"): lambda: True,
            ord("F"): lambda: False,
            ord("i"): lambda: self._number(_INT32),
            ord("g"): lambda: self._number(_FLOAT),
            ord("l"): self._big,
            ord("z"): lambda: self._text(self._take(1)[0], "ascii"),
            ord("Z"): lambda: self._text(self._take(1)[0], "ascii"),
            ord("a"): lambda: self._text(self._size(), "ascii"),
            ord("A"): lambda: self._text(self._size(), "ascii"),
            ord("u"): lambda: self._text(self._size(), "utf-8"),
            ord("t"): lambda: self._text(self._size(), "utf-8"),
        }
        self.containers: dict[int, Callable[[int], Any]] = {
            ord("("): lambda depth: tuple(self._items(self._size(), depth)),
            ord(")"): lambda depth: tuple(self._items(self._take(1)[0], depth)),
            ord("["): lambda depth: self._items(self._size(), depth),
            ord("{"): self._dict,
        }

    def read(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise MarshalError(f"nested deeper than {_MAX_DEPTH}")
        code = self._take(1)[0]
        kind, referenced = code & ~_REFERENCED, code & _REFERENCED
        if kind == ord("r"):
            return self._reference()
        if kind == ord("0"):
            return _END
        number = len(self.known)
        if (reader := self.readers.get(kind)) is not None:
            value = reader()
            if referenced:
                self.known.append(value)
            return value
        if (container := self.containers.get(kind)) is None:
            raise MarshalError(f"a type {chr(kind)!r} at byte {self.at - 1}, which is no data")
        if referenced:  # numbered when it opens, before what it holds
            self.known.append(_OPEN)
        value = container(depth + 1)
        if referenced:
            self.known[number] = value
        return value

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.raw):
            raise MarshalError("cut off")
        taken = self.raw[self.at : end]
        self.at = end
        return taken

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _size(self) -> int:
        """A count of things that take at least a byte each: more than are left is a lie."""
        size: int = self._number(_UINT32)
        if size > len(self.raw) - self.at:
            raise MarshalError("cut off")
        return size

    def _text(self, size: int, encoding: str) -> str:
        # Lone surrogates are legal in Python's texts and stand in some chat logs.
        errors = "surrogatepass" if encoding == "utf-8" else "strict"
        return self._take(size).decode(encoding, errors)

    def _big(self) -> int:
        digits: int = self._number(_INT32)
        if abs(digits) > _MAX_DIGITS:
            raise MarshalError("an integer of more than 120 bits")
        value = 0
        for place in range(abs(digits)):
            value |= int.from_bytes(self._take(2), "little") << (_DIGIT_BITS * place)
        return -value if digits < 0 else value

    def _items(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth) for _ in range(count)]

    def _dict(self, depth: int) -> dict[Any, Any]:
        found = {}
        while (key := self.read(depth)) is not _END:
            if not isinstance(key, str | int):
                raise MarshalError("a dict's key that is neither text nor integer")
            found[key] = self.value(depth)
        return found

    def value(self, depth: int) -> Any:
        value = self.read(depth)
        if value is _END:
            raise MarshalError("an end where a value is due")
        return value

    def _reference(self) -> Any:
        number: int = self._number(_UINT32)
        if number >= len(self.known) or self.known[number] is _OPEN:
            raise MarshalError(f"a reference to object {number}, which is not there")
        return self.known[number]
