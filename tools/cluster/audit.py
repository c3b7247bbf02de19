"""Which calls clients made, from the API server's audit log: scale tests and benchmarks count them.

audit = Audit(folder, ("operator",))
cluster = start(Profile.CONTROL_PLANE, extra=ExtraFlags(api_server=audit.flags))
audit.calls("operator", since, until)
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from tools.cluster.cluster import Cluster
from tools.cluster.pki import Pki


@dataclass(frozen=True)
class Audit:
    """The calls of these users; others' are not written down, so that they cost nothing."""

    folder: Path
    users: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.folder / "audit.log"

    @property
    def flags(self) -> tuple[str, ...]:
        """For the API server of a cluster to be started."""
        policy = self.folder / "audit-policy.yaml"
        rules = [{"level": "Metadata", "users": list(self.users)}, {"level": "None"}]
        head = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
        policy.write_text(yaml.safe_dump({**head, "rules": rules}))
        return (f"--audit-policy-file={policy}", f"--audit-log-path={self.log}")

    def kubeconfig(self, cluster: Cluster, user: str) -> Path:
        """Of a user who may do all, and whose calls queue behind others' as a controller's do;
        those of system:masters would not. On the project's own cluster."""
        pki = Pki(cluster.home.folder / "pki")
        if not pki.kubeconfig(user).exists():
            admin = json.loads(pki.kubeconfig("admin").read_text())
            pki.make_certificate(user, f"/CN={user}")
            pki.make_kubeconfig(user, admin["clusters"][0]["cluster"]["server"])
            binding = ("clusterrolebinding", f"audited-{user}", "--clusterrole=cluster-admin")
            cluster.kubectl("create", *binding, f"--user={user}")
        return pki.kubeconfig(user)

    def calls(self, user: str, since: float = 0.0, until: float = math.inf) -> Counter[str]:
        """How often each `verb resource` was called between these times since the epoch; a watch
        counts when it begins."""
        found: Counter[str] = Counter()
        for line in self.log.read_text().splitlines():
            event = json.loads(line)
            stage = "ResponseStarted" if event["verb"] == "watch" else "ResponseComplete"
            if event["stage"] != stage or event["user"]["username"] != user:
                continue
            if (
                since
                <= datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
                < until
            ):
                found[_what(event)] += 1
        return found


def _what(event: dict[str, object]) -> str:
    target = event.get("objectRef")
    if not isinstance(target, dict):
        return f"{event['verb']} {event['requestURI']}"
    parts = (target.get("resource"), target.get("subresource"))
    return f"{event['verb']} {'/'.join(str(part) for part in parts if part)}"
