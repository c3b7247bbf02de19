"""Objects of the API server over one kept connection.

kubectl says the same of them, for a tenth of a second of a core each time; and tests look often.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import new_client_from_config
from tools.cluster.errors import CommandFailed

SECONDS = 60.0
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True)
class _Resource:
    """Where the objects of a kind lie."""

    version: str
    """With its path: `api/v1`, `apis/apps/v1`."""
    plural: str
    namespaced: bool

    def path(self, name: str, namespace: str) -> str:
        within = ["namespaces", namespace] if self.namespaced and namespace else []
        return "/" + "/".join([self.version, *within, self.plural, *([name] if name else [])])


@dataclass
class Api:
    """What an administrator may ask of a cluster. A refusal is kubectl's: CommandFailed."""

    kubeconfig: Path
    _resources: dict[str, _Resource] = field(default_factory=dict)

    def get(self, kind: str, name: str, namespace: str, selector: str) -> Any:
        """One object, or all that the label selector matches as `items`. Kinds as kubectl knows
        them: plural, singular, short, with the group behind a dot; several with commas between
        them, and one with its object's name behind a slash."""
        kind, _, named = kind.partition("/")
        if name := name or named:
            return self._ask("GET", self._resource(kind).path(name, namespace))
        query = [("labelSelector", selector)] if selector else []
        lists = [
            self._ask("GET", self._resource(one).path("", namespace), query)
            for one in kind.split(",")
        ]
        return {
            "kind": "List",
            "items": [
                {"apiVersion": some["apiVersion"], "kind": some["kind"].removesuffix("List"), **one}
                for some in lists
                for one in some["items"]
            ],
        }

    def create(self, kind: str, body: Mapping[str, Any], namespace: str = "") -> Any:
        return self._ask("POST", self._resource(kind).path("", namespace), body=body)

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Asks for it, and does not wait."""
        self._ask("DELETE", self._resource(kind).path(name, namespace))

    def close(self) -> None:
        if "_client" in vars(self):
            self._client.rest_client.pool_manager.clear()

    @cached_property
    def _client(self) -> ApiClient:
        # Through no proxy but the kubeconfig's, and no answer is waited for twice: as kubectl here.
        settings = Configuration(proxy="", no_proxy="", retries=urllib3.Retry(3, read=0))
        return new_client_from_config(
            str(self.kubeconfig), persist_config=False, client_configuration=settings
        )

    def _resource(self, kind: str) -> _Resource:
        wanted = kind.lower()
        if wanted not in self._resources:
            self._resources = self._discovered()
        if wanted not in self._resources:
            raise CommandFailed(
                ("get", kind), 1, "", f"the server doesn't have a resource type {kind!r}"
            )
        return self._resources[wanted]

    def _discovered(self) -> dict[str, _Resource]:
        """By all names; of groups that share one the first that the server tells."""
        known: dict[str, _Resource] = {}
        for root in ("api", "apis"):
            for group in self._ask("GET", f"/{root}", accept=_DISCOVERY)["items"]:
                group_name = group.get("metadata", {}).get("name", "")
                for version in group["versions"]:
                    where = "/".join(filter(None, (root, group_name, version["version"])))
                    for one in version.get("resources", []):
                        plural = one["resource"]
                        found = _Resource(where, plural, one["scope"] == "Namespaced")
                        names = plural, one.get("singularResource", ""), *one.get("shortNames", ())
                        for name in filter(None, names):
                            known.setdefault(name, found)
                            known.setdefault(f"{name}.{group_name}", found)
        return known

    def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        accept: str = "application/json",
    ) -> Any:
        def refused(said: str) -> CommandFailed:
            return CommandFailed((method, path), 1, "", said)

        try:
            asked = self._client.param_serialize(
                method=method,
                resource_path=path,
                query_params=list(query),
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*asked, _request_timeout=SECONDS)
            text = answer.read().decode()
        except (urllib3.exceptions.HTTPError, ApiException) as error:
            raise refused(str(error)) from error
        if answer.status >= 400:
            raise refused(_message(text))
        return json.loads(text)


def _message(text: str) -> str:
    """Of a Status, with its reason as kubectl puts it."""
    try:
        status = json.loads(text)
        return f"Error from server ({status['reason']}): {status['message']}"
    except (ValueError, KeyError, TypeError):
        return text
