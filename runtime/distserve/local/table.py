"""The live table of `distserve up`, and how numbers look in it."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from distserve.local.container import State
from distserve.local.pod import Pod
from distserve.local.stats import GatewayStats


def format_bytes(count: float) -> str:
    """1536 is 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def live_table(pods: list[Pod], stats: GatewayStats, url: str) -> Group:
    """One row per pod, and what the gateway measured below them."""
    table = Table(title=f"{url}   (Ctrl-C ends)", title_justify="left")
    for column in ("pod", "role", "address", "state", "restarts"):
        table.add_column(column)
    for pod in pods:
        restarts = sum(c.restarts for c in pod.all_containers)
        table.add_row(
            pod.name, pod.spec.role or "gateway", pod.address, pod_state(pod), str(restarts)
        )
    return Group(table, Text(figures(pods, stats)))


def figures(pods: list[Pod], stats: GatewayStats) -> str:
    """Three lines below the table."""
    instances = [pod for pod in pods if pod.spec.role]
    moved = ", ".join(f"{t} {format_bytes(n)}" for t, n in sorted(stats.kv_bytes.items()) if n)
    return (
        f"instances ready {sum(p.ready for p in instances)}/{len(instances)}   "
        f"requests {stats.requests} ({stats.in_flight} in flight, {stats.failed} failed)\n"
        f"TTFT p50 {format_ms(stats.ttft_ms[0])}, p90 {format_ms(stats.ttft_ms[1])}   "
        f"TPOT p50 {format_ms(stats.tpot_ms[0])}, p90 {format_ms(stats.tpot_ms[1])}\n"
        f"KV moved {moved or '0 B'}"
    )


def pod_state(pod: Pod) -> str:
    """Ready, or what its least advanced container does."""
    if pod.ready:
        return "ready"
    if pod.terminating:
        return "ending"
    for container in pod.all_containers:
        if not container.ready:
            state = "not ready" if container.state is State.RUNNING else container.state
            return f"{container.spec.name} {state}"
    return "starting"
