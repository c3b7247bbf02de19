"""Certificates that the operator makes for its webhook, and when the next ones come.

    serving ----- two thirds of its life -----> serving + coming ---- trusted, and a while -----+
       ^                                        both authorities are announced                  |
       +-------------------------- coming serves, the former stays trusted ---------------------+

Each pair has an authority of its own, whose key is thrown away: nothing that is kept could sign
for another name. Pure, but for the keys that are made.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(hours=1)
"""Clocks of API servers that are behind must not make a new certificate one of the future."""


@dataclass(frozen=True)
class Pair:
    """PEM: a server certificate and its key."""

    certificate: str
    key: str


@dataclass(frozen=True)
class Kept:
    """What the Secret holds."""

    serving: Pair
    trusted: tuple[str, ...]
    """Authorities, PEM."""
    coming: Pair | None = None

    @property
    def bundle(self) -> str:
        """What API servers are to trust."""
        return "".join(self.trusted)


@dataclass(frozen=True)
class Term:
    """How long things last."""

    life: timedelta
    settle: timedelta
    """Between trusting an authority and using it: API servers learn of it in this time."""


def renewed(
    kept: Kept | None, announced: str, names: Sequence[str], now: datetime, term: Term
) -> Kept:
    """What is to be kept from now on. `announced` is what API servers were told to trust."""
    coming = kept.coming if kept is not None and _serves(kept, kept.coming, names, now) else None
    if kept is None or not _serves(kept, kept.serving, names, now):
        # Nothing can be held to: a spare is better than one that nobody has heard of.
        if kept is not None and coming is not None:
            return _pruned(replace(kept, serving=coming, coming=None), now)
        pair, authority = make_pair(names, now, term.life)
        former = kept.trusted if kept is not None else ()
        return _pruned(Kept(pair, (*former, authority)), now)
    kept = _pruned(replace(kept, coming=coming), now)
    if coming is not None:
        known = _authority(kept, coming) in _split(announced)
        settled = _load(coming.certificate).not_valid_before_utc + BACKDATED + term.settle <= now
        return replace(kept, serving=coming, coming=None) if known and settled else kept
    if _load(kept.serving.certificate).not_valid_after_utc - now > term.life / 3:
        return kept
    pair, authority = make_pair(names, now, term.life)
    return replace(kept, coming=pair, trusted=(*kept.trusted, authority))


def make_pair(names: Sequence[str], now: datetime, life: timedelta) -> tuple[Pair, str]:
    """A certificate for DNS names, and the authority that signed it and nothing else."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    # Names that differ: the authorities of two pairs stand in one bundle.
    serial = x509.random_serial_number()
    ca_name = _name(f"distserve webhook {serial:x}"[:60])
    begins, ends = now - BACKDATED, now + life
    ca = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), serial, begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256())
    )
    number = x509.random_serial_number()
    leaf = (
        x509.CertificateBuilder(
            ca_name, _name(names[0][:60]), key.public_key(), number, begins, ends
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
        )
        .sign(ca_key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(_pem(leaf), secret.decode()), _pem(ca)


def read_secret(data: Mapping[str, str]) -> Kept | None:
    """Of a Secret's `data`. None: it is empty, or not what `write_secret` makes."""
    try:
        text = {name: b64decode(value).decode() for name, value in data.items()}
        coming = Pair(text["next.crt"], text["next.key"]) if "next.crt" in text else None
        serving = Pair(text["tls.crt"], text["tls.key"])
        return Kept(serving, tuple(_split(text["ca.crt"])), coming)
    except (KeyError, ValueError):
        return None


def write_secret(kept: Kept) -> dict[str, str]:
    text = {
        "ca.crt": kept.bundle,
        "tls.crt": kept.serving.certificate,
        "tls.key": kept.serving.key,
    }
    if kept.coming is not None:
        text |= {"next.crt": kept.coming.certificate, "next.key": kept.coming.key}
    return {name: b64encode(value.encode()).decode() for name, value in text.items()}


def _serves(kept: Kept, pair: Pair | None, names: Sequence[str], now: datetime) -> bool:
    """Whether it can be shown to API servers that trust what is kept."""
    if pair is None:
        return False
    try:
        leaf = _load(pair.certificate)
        key = serialization.load_pem_private_key(pair.key.encode(), None)
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return (
        leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc
        and set(names) <= set(alternative.value.get_values_for_type(x509.DNSName))
        and key.public_key() == leaf.public_key()
        and bool(_authority(kept, pair))
    )


def _authority(kept: Kept, pair: Pair) -> str:
    """The one that signed it, empty when that is not trusted."""
    leaf = _load(pair.certificate)
    for one in kept.trusted:
        try:
            leaf.verify_directly_issued_by(_load(one))
        except (ValueError, TypeError, InvalidSignature):
            continue
        return one
    return ""


def _pruned(kept: Kept, now: datetime) -> Kept:
    """Without authorities that have ended; one that cannot be read is none."""

    def lives(one: str) -> bool:
        try:
            return _load(one).not_valid_after_utc > now
        except ValueError:
            return False

    return replace(kept, trusted=tuple(one for one in kept.trusted if lives(one)))


def _split(bundle: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [f"{one}{end}" for one in bundle.split(end) if one.strip()]


def _load(certificate: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.encode())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def expiry(certificate: str) -> datetime:
    """When it ends. Raises ValueError."""
    return _load(certificate).not_valid_after_utc.astimezone(UTC)
