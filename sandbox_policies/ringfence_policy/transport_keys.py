"""Keys and certificates of the transport, as Flower and TLS need them. Nothing that anybody says is believed for them.

What holders and the coordinator say is signed by the keys of `identity`. These open and hide the way it takes.
"""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
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
