"""The certificate that the webhook shows: changed while it serves, for every new connection."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

log = logging.getLogger(__name__)

EAGER_SECONDS = 2.0
"""Between looks while there is no certificate at all."""


class CertificateUnusable(Exception):
    """There is none, or a certificate and a key that do not belong together."""


class Identity:
    """`context` is for the listening socket; without a certificate, connections are refused."""

    def __init__(self) -> None:
        self._shown: ssl.SSLContext | None = None
        self._last = ("", "")
        self.context = _context()
        self.context.sni_callback = self._choose

    @property
    def shown(self) -> bool:
        """Whether there is a certificate."""
        return self._shown is not None

    def use(self, certificate: str, key: str) -> bool:
        """PEM. Returns whether it is another one than before; raises CertificateUnusable, and the
        one before stays."""
        if (certificate, key) == self._last:
            return False
        context = _context()
        # OpenSSL reads keys from files alone.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{key}\n{certificate}")
            file.flush()
            try:
                context.load_cert_chain(file.name)
            except (ssl.SSLError, ValueError) as error:
                raise CertificateUnusable(f"tls.crt and tls.key: {error}") from error
        self._shown, self._last = context, (certificate, key)
        return True

    def _choose(self, connection: ssl.SSLObject, _name: object, _context: object) -> int | None:
        if self._shown is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._shown
        return None


async def read_files(folder: Path, identity: Identity) -> None:
    """Shows what cert-manager and the kubelet put there. Raises CertificateUnusable."""
    try:
        # One of them may be newer than the other: then the pair is refused, and read again.
        certificate, key = ((folder / name).read_text() for name in ("tls.crt", "tls.key"))
    except OSError as error:
        raise CertificateUnusable(f"{error.filename}: {error.strerror}") from error
    if identity.use(certificate, key):
        log.info("the webhook shows the certificate in %s", folder)


async def keep_fresh(
    look: Callable[[], Awaitable[None]], identity: Identity, seconds: float
) -> None:
    """Calls `look` again and again, for as long as the process lives. The webhook is optional and
    the operator is not: whatever fails here is logged and tried again."""
    said = ""
    while True:
        try:
            await look()
            said = ""
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            if message != said:
                log.warning("the webhook's certificate is as before: %s", message)
            said = message
        await asyncio.sleep(seconds if identity.shown else min(seconds, EAGER_SECONDS))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
