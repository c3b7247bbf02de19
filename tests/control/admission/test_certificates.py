"""Certificates of the operator's own: at every moment what is shown is what is trusted."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from distserve.operator.certificates import (
    Kept,
    Pair,
    Term,
    expiry,
    make_pair,
    read_secret,
    renewed,
    write_secret,
)
from distserve.operator.tls import CertificateUnusable, Identity

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
TERM = Term(life=timedelta(days=90), settle=timedelta(minutes=5))


async def shake_hands(identity: Identity, bundle: str, name: str = "localhost") -> str:
    """A client's TLS connection to it; returns the certificate that was shown. Raises SSLError."""
    server = await asyncio.start_server(_hang_up, "127.0.0.1", 0, ssl=identity.context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cadata=bundle)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trust, server_hostname=name
        )
        await reader.read()
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return ssl.DER_cert_to_PEM_cert(shown)


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_trusts_the_authority_is_served(
    names: Sequence[str], now: datetime, term: Term
) -> None:
    kept, identity = renewed(None, "", names, now, term), Identity()
    assert identity.use(kept.serving.certificate, kept.serving.key)
    for name in names:
        assert await shake_hands(identity, kept.bundle, name) == kept.serving.certificate
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await shake_hands(identity, kept.bundle, "other.system.svc")
    _, stranger = make_pair(names, now, term.life)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake_hands(identity, stranger)


async def test_the_next_one_is_shown_without_a_new_socket(
    names: Sequence[str], now: datetime, term: Term
) -> None:
    identity = Identity()
    pairs = [make_pair(names, now, term.life) for _ in range(2)]
    server = await asyncio.start_server(_hang_up, "127.0.0.1", 0, ssl=identity.context)
    async with server:
        port = server.sockets[0].getsockname()[1]

        async def connect(authority: str) -> None:
            trust = ssl.create_default_context(cadata=authority)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trust, server_hostname="localhost"
            )
            await reader.read()
            writer.close()
            await writer.wait_closed()

        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(pairs[0][1])  # nothing to show yet
        for pair, authority in pairs:
            assert identity.use(pair.certificate, pair.key)
            assert not identity.use(pair.certificate, pair.key), "the same again is none"
            await connect(authority)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(pairs[0][1])
        with pytest.raises(CertificateUnusable, match="KEY_VALUES_MISMATCH"):
            identity.use(pairs[0][0].certificate, pairs[1][0].key)
        with pytest.raises(CertificateUnusable):
            identity.use("", "")
        await connect(pairs[1][1])  # the one before stays


def test_a_rotation_announces_waits_and_then_shows(names: Sequence[str], term: Term) -> None:
    first = renewed(None, "", names, BEGIN, term)
    assert first.coming is None and len(first.trusted) == 1
    late = BEGIN + term.life * 2 / 3
    assert renewed(first, first.bundle, names, late - timedelta(seconds=1), term) == first
    second = renewed(first, first.bundle, names, late, term)
    assert second.serving == first.serving
    assert second.coming is not None and len(second.trusted) == 2
    settled = late + term.settle
    # Nobody was told yet, or not for long enough.
    assert renewed(second, first.bundle, names, settled, term) == second
    soon = settled - timedelta(seconds=1)
    assert renewed(second, second.bundle, names, soon, term) == second
    third = renewed(second, second.bundle, names, settled, term)
    assert third.serving == second.coming and third.coming is None
    assert third.trusted == second.trusted, "replicas that look later still show the former"
    fourth = renewed(third, third.bundle, names, BEGIN + term.life, term)
    assert fourth.trusted == third.trusted[1:], "the former has ended"


def test_what_is_kept_is_what_the_secret_says(names: Sequence[str], term: Term) -> None:
    first = renewed(None, "", names, BEGIN, term)
    second = renewed(first, first.bundle, names, BEGIN + term.life * 2 / 3, term)
    for kept in (first, second):
        assert read_secret(write_secret(kept)) == kept
    assert write_secret(first).keys() == {"ca.crt", "tls.crt", "tls.key"}
    assert "PRIVATE" not in first.bundle, "no key that could sign is kept anywhere"


def test_a_secret_that_is_none_of_ours() -> None:
    wrong = {name: b64encode(b"\xff\xfe").decode() for name in ("ca.crt", "tls.crt", "tls.key")}
    for data in ({}, {"tls.crt": ""}, wrong, {**wrong, "tls.crt": "no base64"}):
        assert read_secret(data) is None


def _broken(kept: Kept, other: Kept) -> dict[str, Kept]:
    serving, stranger = kept.serving, other.serving
    return {
        "no certificate": replace(kept, serving=Pair("", serving.key)),
        "no key": replace(kept, serving=Pair(serving.certificate, "")),
        "another's key": replace(kept, serving=Pair(serving.certificate, stranger.key)),
        "another's authority": replace(kept, trusted=other.trusted),
        "no authority": replace(kept, trusted=()),
        "authorities that are none": replace(kept, trusted=("x-----END CERTIFICATE-----\n",)),
    }


def test_what_cannot_be_used_is_made_anew(names: Sequence[str], now: datetime, term: Term) -> None:
    kept, other = (renewed(None, "", names, now, term) for _ in range(2))
    for why, broken in _broken(kept, other).items():
        found = renewed(broken, broken.bundle, names, now, term)
        assert found.serving not in (kept.serving, other.serving), why
        assert renewed(found, found.bundle, names, now, term) == found, why
    moved = renewed(kept, kept.bundle, ("elsewhere.system.svc",), now, term)
    assert moved.serving != kept.serving


def test_a_spare_takes_over_when_the_operator_was_away(names: Sequence[str], term: Term) -> None:
    first = renewed(None, "", names, BEGIN, term)
    second = renewed(first, first.bundle, names, BEGIN + term.life * 2 / 3, term)
    late = renewed(second, first.bundle, names, BEGIN + term.life, term)
    assert late.serving == second.coming
    gone = renewed(second, second.bundle, names, BEGIN + term.life * 3, term)
    assert gone.serving not in (second.serving, second.coming)
    assert len(gone.trusted) == 1


def trusts(bundle: str, pair: Pair) -> bool:
    """Whether one of the authorities signed it."""
    leaf = x509.load_pem_x509_certificate(pair.certificate.encode())
    authorities = x509.load_pem_x509_certificates(bundle.encode()) if bundle else []
    return leaf.issuer in [one.subject for one in authorities]


MINUTES = (1, 4, 60, 24 * 60, 20 * 24 * 60)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MINUTES), st.booleans()), max_size=25))
def test_api_servers_trust_what_replicas_show(looks: list[tuple[int, bool]]) -> None:
    """However long the leader is away, and however often telling the API servers fails."""
    names, now, told = ("localhost",), BEGIN, ""
    kept: Kept | None = None
    for minutes, fails in looks:
        now += timedelta(minutes=minutes)
        before, kept = kept, renewed(kept, told, names, now, TERM)
        assert expiry(kept.serving.certificate) > now
        if before is not None and expiry(before.serving.certificate) > now:
            if kept.serving != before.serving:
                assert trusts(told, kept.serving), "never one that nobody was told of"
            # A replica that read the Secret just before goes on showing it for a while.
            assert trusts(kept.bundle, before.serving)
        told = told if fails else kept.bundle
        assert trusts(kept.bundle, kept.serving)
        assert kept.bundle.count("BEGIN CERTIFICATE") <= 3
        assert read_secret(write_secret(kept)) == kept
    last = renewed(kept, told, names, now, TERM)
    healthy = renewed(last, last.bundle, names, now + TERM.settle, TERM)
    again = renewed(healthy, healthy.bundle, names, now + TERM.settle * 2, TERM)
    assert again.coming is None, "a rotation that is told comes to its end"
