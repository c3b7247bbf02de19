"""Ids of requests, legs and transfers, and the process epoch."""

import re
import secrets
import time

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id() -> str:
    return secrets.token_hex(16)


def is_request_id(text: str) -> bool:
    """Whether a client's x-request-id can be taken over into logs, headers and leg ids."""
    return REQUEST_ID.fullmatch(text) is not None


def new_transfer() -> str:
    """128 random bits in hex: a transfer id cannot be guessed, so it cannot be hijacked."""
    return secrets.token_hex(16)


def new_epoch() -> int:
    """Identifies one life of a process; later lives are larger. Compared, never used as a clock."""
    return time.time_ns() // 1_000
