"""The model as the ready instances serve it: tokenizer and limits, kept while they change."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from distserve.gateway.client import EngineClient
from distserve.gateway.errors import NoRoute, ServerFault
from distserve.gateway.fleet import Fleet, Member
from distserve.gateway.parse import Model
from distserve.gateway.routing import fitting
from distserve.gateway.text import TextModel, load_text_model
from distserve.gateway.watch import Mismatch

log = logging.getLogger(__name__)

FETCH_SECONDS = 30.0
"""How long one instance may take to hand out its tokenizer: all others wait for it meanwhile."""


@dataclass(eq=False)
class Models:
    """Text models by the files that they are made from. There is one, except while a rollout
    changes it: then new requests take the one that most instances have. Where only the chat
    template changes, they still go to all of them."""

    name: str
    fleet: Fleet
    client: EngineClient
    complete: Callable[[list[Member]], bool]
    """Whether these make a route."""
    _texts: dict[str, TextModel] = field(default_factory=dict)
    _current: Model | None = None
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def meet(self, member: Member) -> None:
        """Fetch what a new instance's tokenizer needs. One instance after the other: most have
        what the first one had. Raises Mismatch or one of ENGINE_ERRORS."""
        assert member.info is not None
        key = member.files
        if key in self._texts:
            return
        async with self._fetching:
            if key in self._texts:
                return
            async with asyncio.timeout(FETCH_SECONDS):
                files = await self.client.files(member.url, member.info.files)
            try:
                self._texts[key] = await load_text_model(member.info, files, key)
            except ServerFault as fault:
                raise Mismatch(fault.message) from fault
        in_use = {m.files for m in self.fleet.members.values()}
        self._texts = {k: t for k, t in self._texts.items() if k in in_use}

    def current(self) -> Model:
        """Raises NoRoute while no instance was ever ready. With none ready now, the last one
        stays: requests wait for a route, with a bound."""
        able = self._by_tokenizer(self.fleet.able())
        # What is left of a former unit may be no route any more, nor a new one be whole.
        having = self._routed(self.fleet.ready()) or self._routed(self.fleet.able()) or able
        if having:
            former = self._current.text.tokenizer if self._current else ""
            self._current = self._model_of(able[_leading(having, former)])
        if self._current is None:
            raise NoRoute("no instance is ready", retry_after_seconds=5)
        return self._current

    @property
    def ready(self) -> bool:
        """Some complete route exists, and the tokenizer for it is here."""
        try:
            tokenizer = self.current().text.tokenizer
        except NoRoute:
            return False
        return self.complete(fitting(self.fleet.able(), tokenizer))

    def _by_tokenizer(self, members: list[Member]) -> dict[str, list[Member]]:
        return _grouped((m for m in members if m.files in self._texts), lambda m: m.tokenizer)

    def _routed(self, members: list[Member]) -> dict[str, list[Member]]:
        having = self._by_tokenizer(members)
        return {key: found for key, found in having.items() if self.complete(found)}

    def _model_of(self, members: list[Member]) -> Model:
        """Of members with one tokenizer."""
        by_files = _grouped(members, lambda m: m.files)
        key = _leading(by_files, self._current.text.key if self._current else "")
        infos = [member.info for member in members if member.info is not None]
        tightest = min(infos, key=lambda info: info.max_model_len)
        return Model(self.name, tightest, self._texts[key])


def _grouped(members: Iterable[Member], key_of: Callable[[Member], str]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(key_of(member), []).append(member)
    return found


def _leading(having: dict[str, list[Member]], current: str) -> str:
    """What most have: the others' load goes there. Among equals the newer one, since the older
    ones are about to end; as before where nothing tells which that is."""

    def rank(key: str) -> tuple[int, int, bool]:
        # A container that starts anew makes its unit no newer.
        since = min(member.info.epoch for member in having[key] if member.info is not None)
        return len(having[key]), since, key == current

    return max(having, key=rank)
