"""What the command line makes of the webhook's flags."""

import argparse
import socket
from pathlib import Path
from typing import Any

import pytest

from distserve.cli import operator as command
from distserve.cli.main import UsageError
from distserve.operator.probes import PortTaken
from distserve.operator.settings import (
    MountedCertificate,
    SelfMadeCertificate,
    Settings,
    WebhookSettings,
)
from distserve.operator.webhook import Webhook, admit

NO_CLUSTER: Any = None
"""Files need none."""


def parsed(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command._settings(parser.parse_args(words))


def test_without_flags_there_is_no_webhook() -> None:
    assert parsed().webhook is None
    assert parsed("--webhook-port=1").webhook is None


def test_files_of_a_folder() -> None:
    found = parsed("--webhook-cert-dir=/certs", "--webhook-port=1443").webhook
    assert found == WebhookSettings(MountedCertificate(Path("/certs")), port=1443)


def test_a_certificate_of_its_own() -> None:
    words = ("--lease-namespace=ops", "--webhook-service=hook", "--webhook-configuration=all")
    found = parsed(*words).webhook
    wanted = SelfMadeCertificate("ops", "hook", "all", names=("hook.ops.svc",))
    assert found == WebhookSettings(wanted, port=9443)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--webhook-service=a"], "give both"),
        (["--webhook-configuration=a"], "give both"),
        (["--webhook-cert-dir=/c", "--webhook-service=a"], "without --webhook-service"),
    ],
    ids=" ".join,
)
def test_flags_that_do_not_go_together(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parsed(*words)


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = WebhookSettings(MountedCertificate(tmp_path), port)
        webhook = Webhook(lambda _: "", lambda: "")
        with pytest.raises(PortTaken, match=str(port)):
            await admit(webhook, settings, "127.0.0.1", NO_CLUSTER, lambda: False)
