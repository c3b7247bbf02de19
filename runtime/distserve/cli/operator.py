"""`distserve operator`: the operator as a process (docs/operate.md)."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from distserve.cli.log_level import add_log_level

if TYPE_CHECKING:
    from distserve.operator.decide import DecideSettings
    from distserve.operator.settings import Settings, WebhookSettings
    from distserve.resources.settings import RenderSettings

_LABEL_NAME: Final = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--namespaces", default="", help="watch only these, as a,b (default: all)")
    add("--lease-namespace", default="default", help="where the Lease of the leader lives")
    add("--lease-name", default="distserve-operator")
    add("--identity", help="this replica in the Lease (default: host name and process)")
    add("--engine-image", help="used where spec.images names none (default: of this version)")
    add("--migrator-image", help="the same")
    add("--gateway-image", help="the same")
    add(
        "--gateway-cluster-role",
        default="distserve-gateway",
        help="ClusterRole that gateways are bound to; the chart makes it",
    )
    add(
        "--runbook-url",
        help="where docs/runbooks is published; deployments' alerts link there (default: its path "
        "in the project's checkout)",
    )
    add(
        "--monitoring-labels",
        default="",
        help="labels of deployments' PodMonitors and PrometheusRules, as a=b,c=d: those by which "
        "Prometheus selects them (default: none)",
    )
    add("--host", default="0.0.0.0", help="address of all its ports (default: any)")
    add("--health-port", type=int, default=8081, help="/healthz and /readyz (default 8081)")
    add("--metrics-port", type=int, default=8080, help="/metrics (default 8080)")
    add("--workers", type=int, default=4, help="deployments at work at a time (default 4)")
    add_log_level(parser)
    add("--log-format", choices=("json", "text"), default="json")
    add(
        "--engine-check",
        choices=("on", "off"),
        default="on",
        help="refuse specs that this version's engine cannot run (default on)",
    )
    add(
        "--image-volume",
        choices=("on", "off"),
        default="off",
        help="take model.source.image although Kubernetes is older than 1.35: its feature gate "
        "ImageVolume is on in API server and kubelets (default off)",
    )
    add(
        "--kueue",
        choices=("on", "off"),
        default="off",
        help="look at Kueue's kinds, for topology.scheduler Kueue; needs rights (default off)",
    )
    add(
        "--volcano",
        choices=("on", "off"),
        default="off",
        help="look at Volcano's kinds, for topology.scheduler Volcano; needs rights (default off)",
    )
    add(
        "--kai",
        choices=("on", "off"),
        default="off",
        help="look at KAI's kinds, for topology.scheduler KAI; needs rights (default off)",
    )
    add(
        "--gang-scheduling",
        choices=("on", "off"),
        default="off",
        help="look at Kubernetes' own PodGroups, for topology.scheduler GangScheduling; needs "
        "rights (default off)",
    )
    add("--webhook-port", type=int, default=9443, help="of the validating webhook (default 9443)")
    add(
        "--webhook-cert-dir",
        type=Path,
        help="serve it with tls.crt and tls.key of this folder, which may change",
    )
    add(
        "--webhook-service",
        help="serve it with a certificate of its own for this Service in the Lease's namespace, "
        "kept in the Secret of the same name",
    )
    add(
        "--webhook-configuration",
        help="ValidatingWebhookConfiguration that is told to trust that certificate",
    )
    add("--kubeconfig", type=Path, help="outside of a cluster (default: as kubectl)")


def run(args: argparse.Namespace) -> int:
    import asyncio
    import functools
    import logging
    import signal

    from distserve.cli.main import UsageError
    from distserve.operator.admission import judge
    from distserve.operator.cluster import NoCluster
    from distserve.operator.decide import decide
    from distserve.operator.errors import LeaseLost
    from distserve.operator.probes import PortTaken
    from distserve.operator.process import run as run_operator
    from distserve.operator.restoring import stated
    from distserve.operator.resync import WatchDead
    from distserve.operator.watching import WatchingEnded, retries_warn
    from distserve.wire.logs import setup_logging

    if args.workers < 1:
        raise UsageError("--workers must be at least 1")
    settings = _settings(args)
    setup_logging("operator", args.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(retries_warn)
        if args.log_format == "text":
            text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
            handler.setFormatter(text)
    if args.log_level != "debug":
        # kopf tells of each watch and each object that it saw.
        logging.getLogger("kopf").setLevel(logging.ERROR)
    said = decide_settings(args)
    decision = functools.partial(decide, settings=said)
    admission = functools.partial(judge, settings=said)

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_operator(settings, decision, stated, stop, judge=admission)

    try:
        asyncio.run(until_signal())
    except (NoCluster, PortTaken) as error:
        raise UsageError(str(error)) from error
    except (LeaseLost, WatchDead, WatchingEnded) as error:
        logging.getLogger("distserve.operator").error("the operator ends: %s", error)
        return 1
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from dataclasses import replace

    from distserve.operator.settings import LeaseSettings, QueueSettings, Settings, WatchSettings

    lease = LeaseSettings(namespace=args.lease_namespace, name=args.lease_name)
    if args.identity:
        lease = replace(lease, identity=args.identity)
    return Settings(
        namespaces=tuple(name for name in args.namespaces.split(",") if name),
        kubeconfig=args.kubeconfig,
        host=args.host,
        health_port=args.health_port,
        metrics_port=args.metrics_port,
        lease=lease,
        watch=WatchSettings(
            kueue=args.kueue == "on",
            volcano=args.volcano == "on",
            gang_scheduling=args.gang_scheduling == "on",
            kai=args.kai == "on",
        ),
        queue=QueueSettings(workers=args.workers),
        webhook=_webhook(args),
    )


def _webhook(args: argparse.Namespace) -> "WebhookSettings | None":
    from distserve.cli.main import UsageError
    from distserve.operator.settings import (
        MountedCertificate,
        SelfMadeCertificate,
        WebhookSettings,
    )

    own = (args.webhook_service, args.webhook_configuration)
    if args.webhook_cert_dir is not None:
        if any(own):
            raise UsageError("--webhook-cert-dir: without --webhook-service and -configuration")
        return WebhookSettings(MountedCertificate(args.webhook_cert_dir), args.webhook_port)
    if not any(own):
        return None
    if not all(own):
        raise UsageError("--webhook-service and --webhook-configuration go together: give both")
    certificate = SelfMadeCertificate(
        namespace=args.lease_namespace,
        secret=args.webhook_service,
        configuration=args.webhook_configuration,
        names=(f"{args.webhook_service}.{args.lease_namespace}.svc",),
    )
    return WebhookSettings(certificate, args.webhook_port)


def decide_settings(args: argparse.Namespace) -> "DecideSettings":
    from distserve.operator.decide import DecideSettings
    from distserve.resources.support import IMAGE_VOLUME

    return DecideSettings(
        render=render_settings(args),
        engine_check=args.engine_check == "on",
        feature_gates=frozenset({IMAGE_VOLUME} if args.image_volume == "on" else ()),
    )


def render_settings(args: argparse.Namespace) -> "RenderSettings":
    from distserve.observability.rules import RUNBOOKS
    from distserve.resources.settings import DefaultImages, RenderSettings, released_images

    released = released_images()
    return RenderSettings(
        images=DefaultImages(
            engine=args.engine_image or released.engine,
            migrator=args.migrator_image or released.migrator,
            gateway=args.gateway_image or released.gateway,
        ),
        gateway_cluster_role=args.gateway_cluster_role,
        runbooks=args.runbook_url or RUNBOOKS,
        monitoring_labels=_labels(args.monitoring_labels),
    )


def _labels(text: str) -> dict[str, str]:
    """Of --monitoring-labels. Those of distserve.io say what an object is: nobody else sets one."""
    from distserve.api.labels import GROUP
    from distserve.cli.main import UsageError
    from distserve.resources.naming import LABEL_VALUE

    pairs = [one.partition("=") for one in text.split(",") if one]
    for name, equals, value in pairs:
        known = _LABEL_NAME.fullmatch(name) and LABEL_VALUE.fullmatch(value)
        if not equals or not known:
            raise UsageError(
                f"--monitoring-labels: {name}{equals}{value} is no label; write NAME=VALUE, with "
                "commas between several, as in release=prometheus"
            )
        if name.startswith(f"{GROUP}/"):
            raise UsageError(
                f"--monitoring-labels: {name} is the operator's to say; choose a name that does "
                f"not begin with {GROUP}/"
            )
    found = {name: value for name, _, value in pairs}
    if len(found) < len(pairs):
        raise UsageError("--monitoring-labels: a name is there twice; give each one value")
    return found
