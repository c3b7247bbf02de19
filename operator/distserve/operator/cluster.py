"""The one place that talks to the API server, apart from kopf's watches.

Every call has a bound and ends as a typed answer or a typed error. Writes need the lease.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlencode

import aiohttp
import msgspec
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.incluster_config import SERVICE_TOKEN_FILENAME
from kubernetes.aio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

from distserve.operator.errors import (
    ClusterError,
    Conflict,
    LeaseLost,
    NotFound,
    Refused,
    Unavailable,
    WebhookDown,
)
from distserve.operator.kinds import SECRETS, Kind, kind_of
from distserve.operator.model import Object, Ref
from distserve.operator.settings import CallSettings

MANAGER = "distserve-operator"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

Verb = Literal["get", "list", "watch", "create", "apply", "update", "delete"]
_METHODS: dict[Verb, str] = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "apply": "PATCH",
    "update": "PUT",
    "delete": "DELETE",
}
_READS: frozenset[Verb] = frozenset({"get", "list", "watch"})
_WEBHOOK = "failed calling webhook"
"""An API server's words: there is no status code of its own for that."""
_MESSAGE_CHARACTERS = 1800
"""An API server repeats what it refuses, which may be a megabyte. Conditions take 2000, with words
of ours behind it."""
_GRACE_SECONDS = 2.0
"""Beyond the client's own timeout, which does not cover everything it does."""


class CountCall(Protocol):
    def __call__(self, verb: Verb, outcome: str) -> None: ...


class NoCluster(Exception):
    """Nothing says where the API server is."""


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """The pod's service account, else the file, $KUBECONFIG or ~/.kube/config. Raises NoCluster."""
    found = Configuration()
    if kubeconfig is None and Path(SERVICE_TOKEN_FILENAME).exists():
        with kubeconfig_errors():
            config.load_incluster_config(client_configuration=found)
    else:
        file = str(kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION)
        with kubeconfig_errors(file):
            await config.load_kube_config(config_file=file, client_configuration=found)
    return found


@contextlib.contextmanager
def kubeconfig_errors(files: str = "") -> Iterator[None]:
    """What the client's library raises for a kubeconfig, as NoCluster: one that is not of the
    shape it notices nowhere, and trips over it. `files` may be several, as in KUBECONFIG."""
    paths = [path for path in files.split(os.pathsep) if path]
    try:
        if paths and not any(Path(path).expanduser().exists() for path in paths):
            raise FileNotFoundError(f"there is no {files}")
        yield
    except (config.ConfigException, OSError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise NoCluster(f"no cluster: {said}; name one with --kubeconfig") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NoCluster(
            f"no cluster: {files or 'the kubeconfig'} cannot be understood ({error}); "
            "name one with --kubeconfig"
        ) from error


class Cluster:
    def __init__(
        self,
        configuration: Configuration,
        settings: CallSettings,
        count: CountCall = lambda verb, outcome: None,
    ) -> None:
        """Raises NoCluster."""
        configuration.connection_pool_maxsize = settings.connections
        with kubeconfig_errors():  # Certificates are looked at here.
            self._api = ApiClient(configuration)
        self._configuration = configuration
        self._settings = settings
        self._count = count
        self.may_write: Callable[[], bool] = lambda: False
        """Whether this replica holds the lease: asked before each write."""

    async def close(self) -> None:
        await self._api.close()

    def another(self) -> Cluster:
        """A client of the same API server, for another event loop. Not for writes."""
        return Cluster(self._configuration, self._settings, self._count)

    async def get(
        self, kind: Kind, namespace: str, name: str, *, metadata_only: bool = False
    ) -> Object | None:
        """None where there is none of that name."""
        try:
            return await self.call(
                "get",
                kind.path(namespace, name),
                headers={"Accept": METADATA_ONLY} if metadata_only else {},
            )
        except NotFound:
            return None

    async def deployment_key(self, namespace: str, secret: str) -> bytes | None:
        """None where there is no such Secret, or no key in it. Raises ClusterError."""
        found = (await self.get(SECRETS, namespace, secret) or {}).get("data") or {}
        return base64.b64decode(found["key"]).strip() if found.get("key") else None

    async def list_metadata(
        self, kind: Kind, namespace: str = "", selector: str = "", chunk: int = 250
    ) -> AsyncIterator[Object]:
        """Metadata of all objects of the kind, in chunks: their versions are what is asked."""
        query = {"limit": str(chunk)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self.call(
                "list", kind.path(namespace), query=query, headers={"Accept": METADATA_LIST}
            )
            for item in page.get("items") or ():
                yield item
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return

    async def apply(
        self,
        document: Object,
        uid: str = "",
        *,
        force: bool = True,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Server-side apply. With `uid`: raises Conflict where another object has the name."""
        kind = kind_of(document["apiVersion"], document["kind"])
        metadata = document["metadata"]
        if uid:
            document = {**document, "metadata": {**metadata, "uid": uid}}
        query = {"fieldManager": MANAGER, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        return await self.write(
            "apply",
            kind.path(metadata["namespace"], metadata["name"], subresource),
            document,
            query=query,
            content_type="application/apply-patch+yaml",
        )

    async def apply_new(self, document: Object) -> Object:
        """Server-side apply of what is not there yet. Raises Conflict where one of that name is,
        whoever made it: no object has the version that is asked for."""
        metadata = {**document["metadata"], "resourceVersion": "1"}
        return await self.apply({**document, "metadata": metadata}, force=False)

    async def create(self, document: Object) -> Object:
        """Raises Conflict where one of that name is there."""
        kind = kind_of(document["apiVersion"], document["kind"])
        path = kind.path(document["metadata"]["namespace"])
        return await self.write("create", path, document, query={"fieldManager": MANAGER})

    async def delete(
        self, namespace: str, ref: Ref, uid: str, grace_seconds: int | None = None
    ) -> Object:
        """In the background. Returns the object as it goes, or a Status where it went at once.
        Raises NotFound, or Conflict where another object has the name."""
        options: Object = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        kind = kind_of(ref.api_version, ref.kind)
        return await self.write("delete", kind.path(namespace, ref.name), options)

    async def write(
        self,
        verb: Verb,
        path: str,
        body: Object,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        if not self.may_write():
            raise LeaseLost(f"no {verb} of {path}: this replica does not hold the lease")
        headers, bound = {"Content-Type": content_type}, self._settings.write_seconds
        return await self.call(verb, path, query=query, body=body, headers=headers, seconds=bound)

    async def call(
        self,
        verb: Verb,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Object:
        """One call within its bound. Raises ClusterError."""
        bound = seconds or self._settings.seconds
        outcome = "unavailable"
        try:
            async with asyncio.timeout(bound + _GRACE_SECONDS):
                response = await self._send(verb, path, query, body, headers, bound)
                text = await response.read()
            outcome = str(response.status)
        except TimeoutError as error:
            raise Unavailable(f"{verb} {path}: no answer within {bound:g} s") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"{verb} {path}: {error or type(error).__name__}") from error
        finally:
            self._count(verb, outcome)
        if response.status >= 400:
            raise _error(f"{verb} {path}", response.status, response.headers, text)
        found: Object = msgspec.json.decode(text)
        return found

    async def watch_lines(
        self, path: str, query: Mapping[str, str], seconds: float
    ) -> AsyncGenerator[Object, None]:
        """Watch events until the stream ends or this long has passed. Raises ClusterError."""
        try:
            response = await self._send("watch", path, query, None, None, seconds)
            self._count("watch", str(response.status))
            try:
                if response.status >= 400:
                    text = await response.read()
                    raise _error(f"watch {path}", response.status, response.headers, text)
                async for line in response.response.content:
                    yield msgspec.json.decode(line)
            finally:
                response.response.close()
        except TimeoutError:
            return
        except aiohttp.ClientError as error:
            raise Unavailable(f"watch {path}: {error or type(error).__name__}") from error

    async def _send(
        self,
        verb: Verb,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        headers: Mapping[str, str] | None,
        seconds: float,
    ) -> Any:
        method, url, sent, _, _ = await self._api.param_serialize(
            _METHODS[verb],
            path + (f"?{urlencode(query)}" if query else ""),
            header_params=dict(headers or {}),
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=seconds)
        return await self._api.rest_client.request(
            method, url, headers=sent, body=body, _request_timeout=timeout
        )


def _error(call: str, status: int, headers: Mapping[str, str], text: bytes) -> ClusterError:
    try:
        said = msgspec.json.decode(text)
        message = said.get("message") or said.get("reason") or ""
        details = said.get("details") or {}
    except (msgspec.DecodeError, AttributeError):
        message, details = text.decode(errors="replace")[:500], {}
    message = f"{call}: {message or f'HTTP {status}'}"[:_MESSAGE_CHARACTERS]
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status == 429 or status >= 500:
        kind = WebhookDown if _WEBHOOK in message else Unavailable
        after = headers.get("Retry-After") or details.get("retryAfterSeconds") or 0
        try:
            return kind(message, float(after))
        except ValueError:
            return kind(message)
    return Refused(message)
