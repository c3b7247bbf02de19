"""The webhook with certificates of the real cert-manager: issued, announced, renewed, lost."""

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.kubernetes.hook import (
    AWAY,
    CONFIGURATION,
    DRY,
    NAME,
    SAID,
    SYSTEM,
    Hook,
    tiny,
    wrong,
)
from tools.cluster import cert_manager
from tools.cluster.fixtures import or_skip

# It may have to be built.
pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(2400)]

PORT = 9443
SECRET = f"{NAME}-tls"
MOUNTED_SECONDS = 400.0
"""A kubelet looks at mounted Secrets every one and a half minutes, the operator every 10 s."""
AFTER_FOUR_MINUTES = {"duration": "1h", "renewBefore": "56m"}
OLDER = {"CAInjectorMerging": False}
"""Before 1.19 a cainjector put the new authority in the place of the one before, not beside it."""


class Issued(Hook):
    """Beside a cert-manager that works."""

    @property
    def secret(self) -> dict[str, str]:
        """PEM by name; empty while there is none."""
        found = self.cluster.get("secrets", namespace=SYSTEM)["items"]
        data = [one["data"] for one in found if one["metadata"]["name"] == SECRET]
        return {name: base64.b64decode(text).decode() for one in data for name, text in one.items()}

    def issued(self, name: str = NAME) -> int:
        """How often."""
        found = self.cluster.get("certificate", name, SYSTEM)
        return int(found.get("status", {}).get("revision", 0))

    def renew(self, name: str = NAME) -> None:
        """As `cmctl renew` asks for it."""
        status = self.cluster.get("certificate", name, SYSTEM)["status"]
        asked = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered"}
        status["conditions"] = [*status["conditions"], {**asked, "message": "by a test"}]
        self.patch(name, {"status": status}, "--subresource=status")

    def patch(self, name: str, change: dict[str, Any], *flags: str) -> None:
        where = (f"certificate/{name}", f"--namespace={SYSTEM}", "--type=merge")
        self.cluster.kubectl("patch", *where, f"--patch={json.dumps(change)}", *flags)

    def shown(self) -> list[str]:
        """What each operator shows, as one line."""
        addresses = [pod["status"]["podIP"] for pod in self.operators()]
        return [_line(ssl.get_server_certificate((one, PORT), timeout=10)) for one in addresses]

    def lives(self) -> set[tuple[str, int]]:
        """Of the operators' containers."""
        return {
            (pod["metadata"]["uid"], status["restartCount"])
            for pod in self.operators()
            for status in pod["status"]["containerStatuses"]
        }

    def while_answers_come(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits; meanwhile no review goes without the operator's words."""

        def holds() -> bool:
            assert SAID in (said := self.refused(wrong(), DRY)), said
            return condition()

        self.cluster.wait_for(what, holds, MOUNTED_SECONDS)


def _line(certificate: str) -> str:
    return "".join(certificate.split())


@pytest.fixture(scope="module")
def hook(place: Any) -> Iterator[Issued]:
    found = Issued(place)
    with or_skip("cert-manager"):
        cert_manager.prepare(found.cluster)
    with cert_manager.controller(found.cluster, **OLDER):
        found.upgrade(
            "webhook.enabled=true",
            "webhook.certificates=CertManager",
            "webhook.failurePolicy=Fail",
        )
        found.cluster.wait_for("the first answer", lambda: SAID in found.refused(wrong(), DRY), 300)
        yield found
        found.upgrade(
            "webhook.enabled=false",
            "webhook.certificates=SelfMade",
            "webhook.failurePolicy=Ignore",
        )


def test_it_refuses_by_a_certificate_that_was_issued(hook: Issued) -> None:
    """By Issuer and Certificate of the chart, announced by the cainjector."""
    said = hook.refused(wrong())
    assert "denied the request" in said and SAID in said
    assert hook.refused(tiny("good")) == ""
    assert SAID in hook.refused(wrong("good"))
    assert hook.authorities == hook.secret["ca.crt"]
    assert set(hook.shown()) == {_line(hook.secret["tls.crt"])}
    injected = hook.cluster.get(CONFIGURATION, NAME)["metadata"]["annotations"]
    assert injected["cert-manager.io/inject-ca-from"] == f"{SYSTEM}/{NAME}"


def test_an_upgrade_leaves_what_was_announced(hook: Issued) -> None:
    before = hook.authorities
    hook.upgrade("operator.workers=5")
    assert hook.authorities == before
    hook.wait_for_words()


def test_a_lost_certificate_is_issued_anew_and_refuses_nobody(hook: Issued) -> None:
    """The kubelets bring it a minute later: until then operators show the one before."""
    before, lives = hook.secret["tls.crt"], hook.lives()
    hook.cluster.kubectl("delete", "secret", SECRET, f"--namespace={SYSTEM}")
    hook.while_answers_come(
        "another certificate", lambda: hook.secret.get("tls.crt", before) != before
    )
    another = {_line(hook.secret["tls.crt"])}
    hook.while_answers_come("both to show it", lambda: set(hook.shown()) == another)
    hook.while_answers_come("answers with it", lambda: True)
    assert hook.lives() == lives, "nobody was restarted"


def test_a_certificate_that_nears_its_end_is_renewed_in_time(hook: Issued) -> None:
    """By cert-manager's clock, with the shortest times that it takes."""
    lives, before = hook.lives(), hook.issued()
    hook.patch(NAME, {"spec": AFTER_FOUR_MINUTES})
    hook.renew()
    hook.while_answers_come("one of an hour", lambda: hook.issued() == before + 1)
    hook.while_answers_come("the next one", lambda: hook.issued() == before + 2)
    due = _line(hook.secret["tls.crt"])
    hook.while_answers_come("both to show it", lambda: {due} == set(hook.shown()))
    assert hook.lives() == lives


def test_an_authority_that_is_renewed_vouches_for_what_it_signed(hook: Issued) -> None:
    authority, before, lives = f"{NAME}-ca", hook.authorities, hook.lives()
    hook.renew(authority)
    hook.while_answers_come("its next certificate", lambda: hook.issued(authority) == 2)
    hook.renew()
    hook.while_answers_come("it to be announced", lambda: hook.authorities != before)
    another = {_line(hook.secret["tls.crt"])}
    hook.while_answers_come("both to show what it signed", lambda: set(hook.shown()) == another)
    assert hook.lives() == lives


def test_nobody_else_is_held_up_while_no_operator_runs(hook: Issued) -> None:
    cluster, where = hook.cluster, f"--namespace={hook.namespace}"
    cluster.apply(tiny("there"), hook.namespace)
    hook.scale(0)
    try:
        assert AWAY in hook.refused(tiny("new"), DRY)
        cluster.kubectl("create", "configmap", "other", where)
        cluster.kubectl("annotate", "dsd", "there", "note=1", where)
        cluster.kubectl("delete", "dsd", "there", where, "--timeout=30s")
        hook.be("Ignore")
        cluster.wait_for("all to pass", lambda: hook.refused(tiny("new"), DRY) == "")
    finally:
        hook.be("Fail")
        hook.scale(2)
    hook.wait_for_words()


def test_the_operators_own_certificate_may_follow(hook: Issued) -> None:
    """What cert-manager announced is replaced."""
    before = hook.authorities
    hook.upgrade("webhook.certificates=SelfMade")
    hook.wait_for_words()
    assert hook.authorities not in ("", before)
