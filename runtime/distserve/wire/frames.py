"""Frames of every socket between engines and migrators: a length, then one msgpack message.

The length is checked before anything is allocated, and a message is decoded into its Struct or
refused: whoever is on the other side, a reader sees a typed message, the end, or a ProtocolError.
"""

import asyncio
import struct
from typing import Any, Generic, TypeVar

import msgspec

from distserve.wire.messages import MAX_FRAME_BYTES

PREFIX = struct.Struct(">I")
RELAYED_FRAME_BYTES = MAX_FRAME_BYTES + (64 << 10)
"""Bound where a migrator passes a commit on: what it adds must not push the largest one over."""
T = TypeVar("T")


class ProtocolError(Exception):
    """The other side sent what this version does not understand. The connection is of no use
    any more; the message says what was wrong with it."""


class Codec(Generic[T]):
    """Encodes and decodes one union of tagged Structs."""

    def __init__(self, messages: Any, limit: int = MAX_FRAME_BYTES) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(messages)
        self.limit = limit

    def encode(self, message: T) -> bytes:
        """One frame, prefix included. Raises ProtocolError when it is longer than `limit`."""
        frame = bytearray(PREFIX.size)
        self._encoder.encode_into(message, frame, PREFIX.size)
        size = self.checked(len(frame) - PREFIX.size)
        PREFIX.pack_into(frame, 0, size)
        return bytes(frame)

    def decode(self, payload: bytes) -> T:
        """The message of a frame without its prefix. Raises ProtocolError."""
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message of this protocol: {error}") from error

    def checked(self, size: int) -> int:
        if size > self.limit:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {self.limit}")
        return size


async def read_message(reader: asyncio.StreamReader, codec: Codec[T]) -> T | None:
    """The next message, or None when the other side closed between two frames.

    Raises ProtocolError for an oversized, malformed or cut frame, OSError for a lost connection.
    """
    try:
        prefix = await reader.readexactly(PREFIX.size)
    except asyncio.IncompleteReadError as cut:
        if cut.partial:
            raise ProtocolError("the connection ended inside of a frame") from cut
        return None
    size = codec.checked(PREFIX.unpack(prefix)[0])
    try:
        return codec.decode(await reader.readexactly(size))
    except asyncio.IncompleteReadError as cut:
        raise ProtocolError("the connection ended inside of a frame") from cut
