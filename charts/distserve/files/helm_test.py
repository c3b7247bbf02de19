"""What `helm test` runs in the cluster: does the operator lead, and does the API server know
deployments? Standard library only; the rights are those of templates/tests."""

import argparse
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ANSWER_SECONDS = 10
POLL_SECONDS = 1


class ApiServer:
    """Asks with a ServiceAccount's token."""

    def __init__(self, address: str, token_folder: Path) -> None:
        self._address = address
        self._token = (token_folder / "token").read_text()
        self._context = ssl.create_default_context(cafile=str(token_folder / "ca.crt"))

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        """The answer's JSON; raises HTTPError, whose body is the API server's reason."""
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/apply-patch+yaml"
        request = urllib.request.Request(self._address + path, body, headers, method=method)
        with urllib.request.urlopen(
            request, timeout=ANSWER_SECONDS, context=self._context
        ) as answer:
            return json.load(answer)


def missing_replicas(deployment: Any) -> str:
    """What keeps the operator's Deployment from being complete, or nothing."""
    wanted, status = deployment["spec"]["replicas"], deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return "the controller manager has not seen the Deployment yet"
    counts = {name: status.get(name, 0) for name in ("updatedReplicas", "availableReplicas")}
    short = [f"{count} of {wanted} {name}" for name, count in counts.items() if count < wanted]
    return ", ".join(short)


class Leader:
    """Leads who renews: seen twice, so that no clocks are compared."""

    def __init__(self) -> None:
        self._seen: tuple[str, str] | None = None

    def missing(self, lease: Any) -> str:
        """Why nobody leads, or nothing."""
        holder, renewed = lease["spec"].get("holderIdentity"), lease["spec"].get("renewTime")
        if not holder:
            return "nobody holds the Lease"
        before, self._seen = self._seen, (holder, renewed)
        if before is None or before == self._seen:
            return f"{holder} holds the Lease and does not renew it"
        return ""


def wait_for(what: str, missing: Callable[[], str], deadline: float) -> None:
    """Returns when nothing is missing; ends the program with the last word when time is up."""
    while said := _or_refusal(missing):
        if time.monotonic() > deadline:
            sys.exit(f"FAILED {what}: {said}\nkubectl logs on the operator's pods says more.")
        time.sleep(POLL_SECONDS)
    print(f"ok     {what}", flush=True)


def _or_refusal(missing: Callable[[], str]) -> str:
    try:
        return missing()
    except urllib.error.HTTPError as refused:
        return f"{refused.code} {_message(refused.read())}"
    except OSError as unreachable:
        return f"the API server does not answer: {unreachable}"


def _message(answer: bytes) -> str:
    """Of the API server's Status, or what a proxy before it said."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace")[:2000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operator", required=True, help="name of its Deployment and Lease")
    parser.add_argument("--namespace", required=True, help="the operator's")
    parser.add_argument("--sample", required=True, type=Path, help="a deployment, as JSON")
    parser.add_argument("--sample-namespace", required=True)
    parser.add_argument("--timeout-seconds", type=float, default=120)
    parser.add_argument("--server", default="https://kubernetes.default.svc")
    parser.add_argument("--token-folder", type=Path, default=TOKEN_FOLDER)
    args = parser.parse_args()

    server = ApiServer(args.server, args.token_folder)
    namespace, name = args.namespace, args.operator
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
    sample = json.loads(args.sample.read_text())
    dry_run = (
        f"/apis/{sample['apiVersion']}/namespaces/{args.sample_namespace}/distservedeployments/"
        f"{sample['metadata']['name']}?dryRun=All&fieldManager=helm-test&fieldValidation=Strict"
    )

    def accepted() -> str:
        server.ask(dry_run, "PATCH", json.dumps(sample).encode())
        return ""

    deadline = time.monotonic() + args.timeout_seconds
    wait_for(
        f"all replicas of {name} are up", lambda: missing_replicas(server.ask(deployment)), deadline
    )
    leader = Leader()
    wait_for("one of them leads", lambda: leader.missing(server.ask(lease)), deadline)
    wait_for("the API server takes a deployment (dry run)", accepted, deadline)


if __name__ == "__main__":
    main()
