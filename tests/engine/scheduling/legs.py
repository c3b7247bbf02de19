"""The two legs of a divided request, and both engines' turns until nothing is left to do."""

from typing import Any

from distserve.wire.dialect import Phases, Source


def hand_over(make_leg: Any, prompt: Any, tokens: int, name: str, **fields: Any) -> Any:
    """A prefill leg and the decode leg that continues it."""
    prefill = make_leg(
        prompt, tokens, id=f"{name}-p", phases=Phases.PREFILL, transfer=name, **fields
    )
    decode = make_leg(
        prompt, tokens, id=f"{name}-d", phases=Phases.DECODE, source=Source(name, "h:1"), **fields
    )
    return prefill, decode


def drive(migrator: Any, rounds: int = 50) -> None:
    for _ in range(rounds):
        ran = migrator.prefill.run() + migrator.decode.run()
        if not ran and not migrator.prefill.sent and not migrator.decode.sent:
            return
        migrator.work()
