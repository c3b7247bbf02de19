"""A real API server asks: refusals at apply, an operator that is away, certificates that end."""

import asyncio
import base64
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.errors import CommandFailed

from distserve.operator.admission import judge
from distserve.operator.certificates import Term, make_pair, read_secret
from distserve.operator.cluster import Cluster as Client
from distserve.operator.cluster import load_configuration
from distserve.operator.decide import DecideSettings
from distserve.operator.kinds import DEPLOYMENTS
from distserve.operator.model import Object
from distserve.operator.selfmade import SelfMade
from distserve.operator.settings import CallSettings, SelfMadeCertificate
from distserve.operator.store import Store
from distserve.operator.tls import CertificateUnusable, Identity
from distserve.operator.webhook import Webhook
from distserve.resources.settings import RenderSettings, released_images

SETTINGS = DecideSettings(RenderSettings(released_images()))
SPECS: list[Object] = yaml.safe_load((Path(__file__).parents[1] / "bad_specs.yaml").read_text())
CONFIGURATION = "ValidatingWebhookConfiguration"
WRONG = {"parallelism": {"tensor": 2}}
SAID = "spec.prefill.parallelism: this engine cannot run more than one rank yet"


@pytest.fixture
def configure(crd: Cluster, namespace: str) -> Iterator[Callable[..., str]]:
    """configure(port, bundle, policy) -> the configuration's name, for this namespace alone."""

    def make(port: int, bundle: str, policy: str) -> str:
        trust = base64.b64encode(bundle.encode()).decode()
        hook = {
            "name": "distservedeployments.distserve.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": policy,
            "timeoutSeconds": 5,
            "clientConfig": {"url": f"https://localhost:{port}/validate"}
            | ({"caBundle": trust} if bundle else {}),
            "rules": [
                {
                    "apiGroups": ["distserve.io"],
                    "apiVersions": ["*"],
                    "resources": ["distservedeployments"],
                    "operations": ["CREATE", "UPDATE", "DELETE"],
                }
            ],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        }
        document = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": CONFIGURATION,
            "metadata": {"name": namespace},
            "webhooks": [hook],
        }
        crd.apply(document)
        return namespace

    yield make
    crd.kubectl("delete", CONFIGURATION, namespace, "--ignore-not-found")


def refused(cluster: Cluster, namespace: str, document: Object, *flags: str) -> str:
    """Why it was, empty when it was taken."""
    try:
        cluster.apply(document, namespace, *flags)
    except CommandFailed as failed:
        return failed.stderr
    return ""


def merged(document: Object, changes: Object) -> Object:
    """null removes a field."""
    found = {key: value for key, value in document.items() if changes.get(key, 0) is not None}
    for key, value in changes.items():
        if isinstance(value, dict):
            found[key] = merged(found.get(key) or {}, value)
        elif value is not None:
            found[key] = value
    return found


@pytest.mark.cluster
def test_what_slips_through_the_rules_is_refused_when_it_is_applied(
    crd: Cluster,
    namespace: str,
    sample: Callable[..., Object],
    start_distserve: Callable[..., Any],
    configure: Callable[..., str],
    free_ports: Callable[[int], list[int]],
    tmp_path: Path,
    names: Sequence[str],
    now: datetime,
    term: Term,
) -> None:
    pair, authority = make_pair(names, now, term.life)
    (tmp_path / "tls.crt").write_text(pair.certificate)
    (tmp_path / "tls.key").write_text(pair.key)
    (port,) = free_ports(1)
    configure(port, authority, "Ignore")
    bad = sample("bad", prefill=WRONG)
    # Nobody answers yet, and nobody is held up.
    assert refused(crd, namespace, bad) == ""
    crd.kubectl("delete", "dsd", "bad", f"-n{namespace}")
    operator = start_distserve(f"--webhook-port={port}", f"--webhook-cert-dir={tmp_path}")
    operator.wait_until_ready()
    dry = "--dry-run=server"
    operator.wait_until("refuses", lambda: SAID in refused(crd, namespace, bad, dry))
    asked = 0
    for spec in (one for one in SPECS if "accepted" in one):
        document = sample("bad")
        document = {**document, "spec": merged(document["spec"], spec["spec"])}
        words = judge(_create(document, namespace), Store(), SETTINGS)
        said = refused(crd, namespace, document, dry)
        assert words in said and bool(words) == bool(said), spec["name"]
        asked += bool(words)
    assert asked >= 6

    # A good one, its status, its end: none of that is refused.
    crd.apply(sample("good"), namespace)

    def reported() -> bool:
        return bool(crd.get("dsd", "good", namespace).get("status", {}).get("conditions"))

    operator.wait_until("reports", reported)
    assert SAID in refused(crd, namespace, sample("good", prefill=WRONG))
    crd.kubectl("annotate", "dsd", "good", "note=1", f"-n{namespace}")
    denied = 'distserve_operator_admission_reviews_total{outcome="denied"}'
    assert operator.metric(denied) >= asked
    assert operator.metric(denied.replace("denied", "failed")) == 0
    crd.kubectl("delete", "dsd", "good", f"-n{namespace}")
    assert operator.end() == 0
    assert refused(crd, namespace, bad) == "", "it is away again"


def _create(document: Object, namespace: str) -> Object:
    metadata = {**document["metadata"], "namespace": namespace, "uid": "u"}
    return {
        "operation": "CREATE",
        "namespace": namespace,
        "resource": {"group": DEPLOYMENTS.group, "resource": DEPLOYMENTS.plural},
        "object": {**document, "metadata": metadata},
    }


@pytest.fixture
async def client(crd: Cluster) -> AsyncIterator[Client]:
    found = Client(await load_configuration(crd.kubeconfig), CallSettings())
    found.may_write = lambda: True
    yield found
    await found.close()


@pytest.mark.cluster
async def test_a_rotation_refuses_nobody(
    crd: Cluster,
    namespace: str,
    sample: Callable[..., Object],
    client: Client,
    configure: Callable[..., str],
    free_ports: Callable[[int], list[int]],
    names: Sequence[str],
    now: datetime,
    term: Term,
) -> None:
    """A leader and another replica; the clock of both begins two thirds of a life ago."""
    (port,) = free_ports(1)
    name = configure(port, "", "Fail")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hook"}}
    settings = SelfMadeCertificate(
        namespace=namespace, secret="hook", configuration=name, names=tuple(names)
    )
    moment = now - term.life * 2 / 3
    leader, other = Identity(), Identity()
    leading = SelfMade(settings, leader, client, lambda: True, lambda: moment)
    following = SelfMade(settings, other, client, lambda: False, lambda: moment)
    with pytest.raises(CertificateUnusable, match="helm upgrade"):
        await leading.look()
    await asyncio.to_thread(crd.apply, secret, namespace)
    with pytest.raises(CertificateUnusable, match="the leader makes one"):
        await following.look()
    await leading.look()
    await following.look()

    bad = sample("bad", prefill=WRONG)
    webhook = Webhook(functools.partial(judge, store=Store(), settings=SETTINGS), lambda: "")

    async def says(document: Object) -> str:
        ask = functools.partial(refused, crd, namespace, document, "--dry-run=server")
        return await asyncio.to_thread(ask)

    async def answers(identity: Identity) -> None:
        """With a new socket, so that nobody goes on with an old connection."""
        async with webhook.serve("127.0.0.1", port, identity.context):
            async with asyncio.timeout(30):
                # A changed configuration comes to the API server a moment later.
                while SAID not in (said := await says(bad)):
                    assert "failed calling webhook" in said
            assert await says(sample("good")) == ""

    async def kept() -> Any:
        found = await asyncio.to_thread(crd.get, "secret", "hook", namespace)
        return read_secret(found["data"])

    await answers(leader)
    first = await kept()
    moment = now
    await leading.look()
    second = await kept()
    assert second.serving == first.serving and second.coming is not None
    await answers(other)
    moment = now + term.settle
    await leading.look()
    third = await kept()
    assert third.serving == second.coming
    await answers(leader)
    await answers(other)  # it looks later, and still shows the former
    await following.look()
    await answers(other)
    shown = [await _shown(one, third.bundle) for one in (leader, other)]
    assert shown == [third.serving.certificate] * 2

    # Somebody empties it: the next look makes it anew.
    empty = ("patch", "secret/hook", f"-n{namespace}", "--type=merge", '--patch={"data":null}')
    await asyncio.to_thread(crd.kubectl, *empty)
    await leading.look()
    await following.look()
    await answers(other)


async def _shown(identity: Identity, bundle: str) -> str:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=identity.context) as server:
        _, writer = await asyncio.open_connection(
            "127.0.0.1",
            server.sockets[0].getsockname()[1],
            ssl=ssl.create_default_context(cadata=bundle),
            server_hostname="localhost",
        )
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return ssl.DER_cert_to_PEM_cert(found)
