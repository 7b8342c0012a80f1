"""Keys and certificates of the transport, as Flower and TLS need them. Nothing that anybody says is believed for them.

What holders and the coordinator say is signed by the keys of `identity`. These open and hide the way it takes.
"""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509 import load_pem_x509_certificate


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
        load_pem_x509_certificate(text.encode())
    except UnsupportedAlgorithm:
        raise ValueError("a certificate of an unknown kind") from None
    return text
