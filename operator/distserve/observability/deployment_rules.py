"""One deployment's recording rules and alerts, from its SLO."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from distserve.observability.burning import Threshold, thresholds
from distserve.observability.promql import attained, equals, ratio, series, total
from distserve.observability.rules import Alert, Record, Rule
from distserve.observability.selecting import (
    ATTAINED,
    FAILED,
    JUDGED,
    OBJECTIVE,
    REQUESTS,
    SERVED,
)

ATTAINMENT: Final = "deployment:distserve_slo_attained:ratio_rate5m"
FAILED_RATIO: Final = 0.05
"""Share of requests that end in a server's error before somebody is called."""
LEAST_FAILURES: Final = 10
"""Within an hour: fewer call nobody, however large a share of few requests they are."""
LEAST_MISSES: Final = 10
"""In the long window: fewer call nobody, however large a share of few requests they are. An
objective of 100 % allows none, so there each one is reported."""


@dataclass(frozen=True)
class Service:
    """A deployment as its rules see it."""

    namespace: str
    name: str
    gateway_pods: str
    """What the names of its gateways' pods match: a label that every way of scraping sets."""
    attainment_percent: int | None
    """None: it promises nothing, so nothing is missed."""
    scraped: bool = True
    """Its gateways are to be: where nobody was asked to, that nobody does is no news."""

    @property
    def identity(self) -> dict[str, str]:
        return {"namespace": self.namespace, "deployment": self.name}

    def series(self, metric: str, *matchers: str) -> str:
        pods = f'pod=~"{self.gateway_pods}"'
        return series(metric, equals("namespace", self.namespace), pods, *matchers)

    def recorded(self, record: str) -> str:
        return series(record, *(equals(name, value) for name, value in self.identity.items()))

    def alert(
        self,
        name: str,
        expression: str,
        severity: str,
        summary: str,
        description: str,
        lasting: str = "0m",
        **labels: str,
    ) -> Alert:
        whose = f"{self.namespace}/{self.name}: {summary}"
        found = self.identity | labels
        return Alert(name, expression, severity, whose, description, lasting, found)


def deployment_rules(service: Service) -> Iterator[Rule]:
    if service.attainment_percent is not None:
        yield from _objective(service, service.attainment_percent)
    yield _failing(service)
    if service.scraped:
        yield _absent(service)


def _objective(service: Service, percent: int) -> Iterator[Rule]:
    asked = service.series(JUDGED, OBJECTIVE)
    yield Record(
        ATTAINMENT,
        attained(service.series(ATTAINED, OBJECTIVE), asked, "slo", "5m"),
        service.identity,
    )
    limits = list(thresholds(percent))
    met = service.series(ATTAINED, OBJECTIVE, equals("slo", "both"))
    for window in dict.fromkeys(w for t in limits for w in (t.window.short, t.window.long)):
        missed = f"1 - {attained(met, asked, window=window)}"
        yield Record(missed_ratio(window), missed, service.identity)
    for limit in limits:
        long = limit.window.long
        misses = f"(sum(increase({asked}[{long}])) - sum(increase({met}[{long}])))"
        yield _burning(service, limit, percent, misses)


def missed_ratio(window: str) -> str:
    return f"deployment:distserve_slo_missed:ratio_rate{window}"


def _burning(service: Service, limit: Threshold, percent: int, misses: str) -> Alert:
    window = limit.window
    over = [
        f"{service.recorded(missed_ratio(w))} > {limit.missed:g}"
        for w in (window.long, window.short)
    ]
    enough = f" and on () {misses} >= {LEAST_MISSES}" if limit.missed else ""
    return service.alert(
        "DistServeSloBurning",
        " and ".join(over) + enough,
        window.severity,
        f"{{{{ $value | humanizePercentage }}}} of the requests of {window.long} miss the SLO, "
        f"which allows {100 - percent} %",
        f"See which half is missed: {ATTAINMENT} by slo. ttft: prefill is short, or requests "
        "queue; look at distserve_request_stage_seconds by stage and add units or prefill "
        "instances. tpot: decode batches are too big; add decode instances. `kubectl get dsd "
        f"{service.name}` says whether all units are ready, `distserve plan` what the load needs.",
        long_window=window.long,
        short_window=window.short,
    )


def _failing(service: Service) -> Alert:
    """Of the last minutes, and of the last hour enough: who is asked a little all the time is heard
    as well, and two single failures call nobody."""
    failed, every = service.series(REQUESTS, FAILED), service.series(REQUESTS, SERVED)
    share = ratio(total(failed, window="5m"), total(every, window="5m"))
    enough = f"sum(increase({failed}[1h])) >= {LEAST_FAILURES}"
    return service.alert(
        "DistServeRequestsFailing",
        f"{share} > {FAILED_RATIO} and on () {enough}",
        "critical",
        "{{ $value | humanizePercentage }} of the requests taken in end in an error of the server",
        f"`distserve why {service.name}` joins conditions, events, pods and logs. 503: no "
        "instance takes work, so look at Ready and Degraded. 502 and 504: an engine or its "
        "migrator failed or is too slow; the gateway's log names it with the request's id.",
        "5m",
    )


def _absent(service: Service) -> Alert:
    """Without it the others' alerts would end as soon as nothing answers any more. It asks for what
    they are made of, which gateways of an earlier release lack."""
    return service.alert(
        "DistServeGatewayAbsent",
        f"absent(sum({service.series(JUDGED, OBJECTIVE)}))",
        "critical",
        "no gateway tells what its alerts need",
        "Nothing answers, or Prometheus does not see who does, or it is of an earlier release: "
        f"`kubectl get dsd {service.name}` and the pods of its gateway say which. Its other "
        "alerts have no data meanwhile.",
        "10m",
    )
