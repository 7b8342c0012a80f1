"""Keys and certificates of the transport, as Flower and TLS need them. Nothing that anybody says is believed for them.

What holders and the coordinator say is signed by the keys of `identity`. These open and hide the way it takes.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringfence_policy.durable import write_durably

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
_READABLE = 0o644
# Clocks differ: what is made now also holds for a machine whose clock is a day behind.
_BACKDATED = timedelta(days=1)
_LONGEST_COMMON_NAME = 64


def public_pem(text: str | bytes) -> str:
    """A SuperNode's public key in its one form: PEM, SubjectPublicKeyInfo.

    Raises:
        ValueError: It is not a public key, or not one on the curve P-384, which Flower's authentication needs.
    """
    try:
        key = load_pem_public_key(text.encode() if isinstance(text, str) else text)
    except UnsupportedAlgorithm:
        raise ValueError("a key of an unknown kind") from None
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1):
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    raise ValueError("not an ECDSA key on the curve P-384")


def make_supernode_key() -> bytes:
    """A new private key for a SuperNode, as `flower-supernode` reads it: ECDSA P-384, OpenSSH's form. Secret."""
    return generate_private_key(SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_half(private: bytes) -> str:
    """The public key of a SuperNode's private key, in its one form.

    Raises:
        ValueError: It is not a private key as `make_supernode_key` makes them.
    """
    try:
        key = load_ssh_private_key(private, password=None)
    except (UnsupportedAlgorithm, TypeError):
        raise ValueError("a private key of an unknown kind") from None
    if isinstance(key, EllipticCurvePrivateKey):
        return public_pem(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    raise ValueError("not an ECDSA key")


def certificate_pem(text: str) -> str:
    """A certificate as PEM, unchanged.

    Raises:
        ValueError: It is none.
    """
    try:
        x509.load_pem_x509_certificate(text.encode())
    except UnsupportedAlgorithm:
        raise ValueError("a certificate of an unknown kind") from None
    return text


def signed_by_node(public_key: str, message: bytes, signature: bytes) -> bool:
    """Whether a SuperNode signed a message as Flower's authentication does: ECDSA over SHA-256.

    Args:
        public_key: The SuperNode's registered key, in the form of `public_pem`.
        message: What was signed.
        signature: The signature. From anybody: not trusted.
    """
    key = load_pem_public_key(public_key.encode())
    if not isinstance(key, EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


# --- the coordinator's authority and its certificates ----------------------------------------------------------------


@dataclass(frozen=True)
class Certified:
    """A certificate and the private key that it is for, both PEM."""

    certificate: str
    private_key: str = field(repr=False)

    @property
    def expires(self) -> datetime:
        """Until when it is valid."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc

    @property
    def names(self) -> frozenset[str]:
        """The host names and addresses that it stands for; none for an authority."""
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return frozenset()
        addresses = found.get_values_for_type(x509.IPAddress)
        return frozenset([*found.get_values_for_type(x509.DNSName), *map(str, addresses)])

    def is_from(self, authority: "Certified") -> bool:
        """Whether this very authority issued it."""
        certificate, issuer = (x509.load_pem_x509_certificate(one.certificate.encode()) for one in (self, authority))
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def save(self, certificate: Path, private_key: Path) -> None:
        """Write both files, the private key readable by its owner alone. The certificate comes last."""
        write_durably(private_key, self.private_key.encode())
        write_durably(certificate, self.certificate.encode(), mode=_READABLE)

    @staticmethod
    def load(certificate: Path, private_key: Path) -> "Certified":
        """Read what `save` wrote.

        Raises:
            OSError: A file is not there or cannot be read.
            ValueError: It is no certificate, or no key.
        """
        key = private_key.read_text()
        load_pem_private_key(key.encode(), password=None)
        return Certified(certificate_pem(certificate.read_text()), key)


def make_authority(name: str, *, now: datetime) -> Certified:
    """Make the coordinator's own authority, which may sign certificates of servers and no further authorities.

    Args:
        name: Whose authority it is, for people.
        now: When.
    """
    key = generate_private_key(SECP384R1())
    subject = _subject(f"{name} transport authority")
    builder = (
        _builder(key, subject=subject, issuer=subject, now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _certified(builder.sign(key, SHA384()), key)


def make_server_certificate(
    authority: Certified, names: Iterable[str], *, now: datetime, days: int = CERTIFICATE_DAYS
) -> Certified:
    """Make a certificate, and a new key for it, for a server that clients reach under any of `names`.

    Args:
        authority: Who issues it. It never outlives the authority.
        names: Host names and addresses, as clients write them.
        now: When.
        days: How long it is valid.
    """
    wanted = list(dict.fromkeys(names))
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuing = load_pem_private_key(authority.private_key.encode(), password=None)
    if not isinstance(issuing, EllipticCurvePrivateKey):
        raise TypeError("an authority of this coordinator has an ECDSA key")
    key = generate_private_key(SECP384R1())
    longest = (issuer.not_valid_after_utc - now).days
    builder = (
        _builder(key, subject=_subject(wanted[0]), issuer=issuer.subject, now=now, days=min(days, longest))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(one) for one in wanted]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    return _certified(builder.sign(issuing, SHA384()), key)


def _builder(
    key: EllipticCurvePrivateKey, *, subject: x509.Name, issuer: x509.Name, now: datetime, days: int
) -> x509.CertificateBuilder:
    moment = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BACKDATED)
        .not_valid_after(moment + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_LONGEST_COMMON_NAME])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certified(certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> Certified:
    return Certified(
        certificate.public_bytes(Encoding.PEM).decode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )
