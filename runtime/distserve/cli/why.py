"""`distserve why NAME`: what keeps a deployment from serving, in one answer."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distserve.cli.usage import UsageError

if TYPE_CHECKING:
    from distserve.diagnosis.facts import Facts

ANSWER_SECONDS = 15.0
LOG_LINES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="the deployment")
    add("-n", "--namespace", help="default: the context's")
    add("--context", help="of the kubeconfig; default: the current one")
    add("--kubeconfig", help="default: KUBECONFIG, or ~/.kube/config")
    add("--output", choices=("text", "json"), default="text")
    parser.epilog = "Exit code: 0 it serves, 1 it does not, 2 nobody could say."


def run(args: argparse.Namespace) -> int:
    from distserve.diagnosis.diagnose import diagnose
    from distserve.diagnosis.text import as_document, as_text

    facts = asyncio.run(_collect(args))
    found = diagnose(facts)
    if args.output == "json":
        print(json.dumps(as_document(facts, found), indent=2))
    else:
        print(as_text(facts, found))
    return 0 if found.serves else 1


async def _collect(args: argparse.Namespace) -> Facts:
    from kubernetes.aio import client, config
    from kubernetes.aio.client.exceptions import ApiException
    from kubernetes.aio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

    from distserve.operator.cluster import NoCluster, kubeconfig_errors

    file = args.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
    settings = client.Configuration()
    try:
        with kubeconfig_errors(file):
            await config.load_kube_config(file, args.context, settings)
            namespace = args.namespace or _namespace(file, args.context)
            asking = client.ApiClient(settings)
    except NoCluster as error:
        raise UsageError(str(error)) from None
    async with asking as api:
        reader = _Reader(api, namespace)
        try:
            async with asyncio.timeout(4 * ANSWER_SECONDS):
                return await reader.facts(args.name)
        except ApiException as error:
            raise UsageError(_refusal(error, args.name, namespace)) from None
        except (OSError, TimeoutError) as error:
            said = str(error) or "no answer in time"
            raise UsageError(f"the API server at {settings.host} does not answer: {said}") from None


def _namespace(kubeconfig: str, context: str | None) -> str:
    from kubernetes.aio import config

    contexts, current = config.list_kube_config_contexts(kubeconfig)
    chosen = next((c for c in contexts if c["name"] == context), current)
    return str(chosen["context"].get("namespace", "default"))


def _refusal(error: Any, name: str, namespace: str) -> str:
    if error.status == 404:
        return (
            f"there is no deployment {name} in namespace {namespace}: "
            f"kubectl get distservedeployments --all-namespaces lists all"
        )
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason
    return f"the API server refuses: {message}"


class _Reader:
    """The few reads that the answer needs."""

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def facts(self, name: str) -> Facts:
        from distserve.api import labels
        from distserve.diagnosis.facts import Facts, event_time, regards

        inside = f"/namespaces/{self._namespace}"
        mine = {"labelSelector": f"{labels.DEPLOYMENT}={name}"}
        path = f"/apis/{labels.API_VERSION}{inside}/{labels.PLURAL}/{name}"
        document, pods, sets, gateways, replica_sets, events = await asyncio.gather(
            self._get(path),
            self._list(f"/api/v1{inside}/pods", mine),
            self._list(f"/apis/apps/v1{inside}/statefulsets", mine),
            self._list(f"/apis/apps/v1{inside}/deployments", mine),
            self._list(f"/apis/apps/v1{inside}/replicasets", mine),
            self._events(f"/api/v1{inside}/events"),
        )
        children = [one | {"kind": "StatefulSet"} for one in sets]
        children += [one | {"kind": "Deployment"} for one in gateways]
        ours = {one["metadata"]["name"] for one in (*pods, *children, *replica_sets)} | {name}
        if events is not None:
            events = [e for e in sorted(events, key=event_time) if regards(e)[1] in ours]
        return Facts(
            document=document,
            pods=tuple(pods),
            children=tuple(children),
            events=None if events is None else tuple(events),
            logs=await self._logs(pods),
            operator_pods=await self._operator_pods(),
        )

    async def _events(self, path: str) -> list[dict[str, Any]] | None:
        """Those of the core group, which Kubernetes' roles for users have; of events.k8s.io, the
        same ones, they have none."""
        from kubernetes.aio.client.exceptions import ApiException

        try:
            return await self._list(path, {})
        except ApiException as error:
            if error.status != 403:
                raise
            return None

    async def _logs(self, pods: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
        """Of containers that are not ready: of the run before, where there was one."""
        from distserve.diagnosis.facts import containers, is_ready

        asked = {
            (pod["metadata"]["name"], one.name): one.restarts > 0 and not one.running
            for pod in pods
            if not is_ready(pod)
            for one in containers(pod)
            if not one.ready and (one.running or one.exit_code is not None)
        }
        said = await asyncio.gather(*(self._log(*where, old) for where, old in asked.items()))
        return dict(zip(asked, said, strict=True))

    async def _log(self, pod: str, container: str, previous: bool) -> str:
        from kubernetes.aio.client.exceptions import ApiException

        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}/log"
        query = {"container": container, "tailLines": LOG_LINES}
        try:
            return await self._read(path, query | ({"previous": "true"} if previous else {}))
        except ApiException as error:
            # An answer without the log is worth more than none.
            return f"(the log cannot be read: {error.reason})"

    async def _operator_pods(self) -> tuple[dict[str, Any], ...] | None:
        from kubernetes.aio.client.exceptions import ApiException

        from distserve.api import labels

        which = f"{labels.APP_NAME}={labels.OPERATOR_NAME}"
        try:
            return tuple(await self._list("/api/v1/pods", {"labelSelector": which}))
        except ApiException:
            return None

    async def _list(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = json.loads(await self._read(path, query))
        return list(found["items"])

    async def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._read(path, {}))
        return found

    async def _read(self, path: str, query: Mapping[str, Any]) -> str:
        from urllib.parse import urlencode

        from kubernetes.aio.client.exceptions import ApiException

        headers = {"Accept": "application/json, */*"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        url = f"{self._api.configuration.host}{path}?{urlencode(query)}"
        answer = await self._api.call_api("GET", url, headers, _request_timeout=ANSWER_SECONDS)
        body: str = (await answer.read()).decode(errors="replace")
        if answer.status >= 400:
            refused = ApiException(answer.status, answer.reason)
            refused.body = body
            raise refused
        return body
