"""Letters of made-up data holders, and the keys behind them."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ringfence_policy.identity import SigningKey
from ringfence_policy.letters import Registration
from ringfence_policy.protocol import HolderCard


def supernode_key() -> ec.EllipticCurvePrivateKey:
    """A SuperNode's private key."""
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half, as registrations say it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass(frozen=True)
class Correspondent:
    """A data holder that writes registrations."""

    holder_id: str
    root: SigningKey

    @classmethod
    def named(cls, holder_id: str) -> "Correspondent":
        """A holder with a root key of its own."""
        return cls(holder_id, SigningKey.generate(f"{holder_id}/root-1"))

    def write(self, key: ec.EllipticCurvePrivateKey, *, issued_ms: int = 1_000, weight: int = 100) -> str:
        """A registration, signed."""
        card = HolderCard(
            holder_id=self.holder_id,
            name=self.holder_id.title(),
            region="CH",
            weight=weight,
            root=self.root.public().jwk,
        )
        return Registration(card=card, flower_key=pem(key), issued_ms=issued_ms).sign(self.root)
