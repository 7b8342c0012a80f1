"""The two letters by which a coordinator and a data holder get to know each other before the first run.

Each is signed by the root key that it brings. That proves that nothing in it was changed on the way, and not whose key
it is: whoever receives one compares the root key's thumbprint with the sender by another way, such as a telephone.
"""

from typing import Annotated, TypeVar

from pydantic import Field, field_validator

from ringfence_policy.documents import Milliseconds, Name, SignedDocument
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, PublicKey, SigningKey, open_signed, parse, sign
from ringfence_policy.protocol import HolderCard
from ringfence_policy.transport_keys import certificate_pem, public_pem

_LONGEST_PEM = 10_000
Pem = Annotated[str, Field(max_length=_LONGEST_PEM)]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252}):[0-9]{1,5}$")]


class Registration(SignedDocument):
    """A data holder's letter to a coordinator: who it is, and the key of the SuperNode that speaks for it.

    Attributes:
        card: The holder's card, with its root key.
        flower_key: The public key of its SuperNode: ECDSA P-384, PEM (SubjectPublicKeyInfo). It opens the way for
            messages and signs nothing that a holder says.
        issued_ms: When it was written.
    """

    card: HolderCard
    flower_key: Pem
    issued_ms: Milliseconds

    @field_validator("flower_key")
    @classmethod
    def _is_the_one_form_of_a_p384_key(cls, value: str) -> str:
        if public_pem(value) != value:
            raise ValueError("not the one form of the key")
        return value

    @property
    def root(self) -> PublicKey:
        """The holder's root key. Believed once its thumbprint was compared."""
        return PublicKey.from_jwk(self.card.root)

    def sign(self, key: SigningKey) -> str:
        """The letter as it is handed over, signed by the holder's root key."""
        return sign(self.to_document(), type=DocumentType.REGISTRATION, key=key)

    @staticmethod
    def open(token: str) -> "Registration":
        """Read a registration.

        Raises:
            TrustRefused: It is not one, was changed, or is not signed by the root key that it names.
        """
        return _opened(Registration, token, DocumentType.REGISTRATION)


class Invitation(SignedDocument):
    """A coordinator's letter to data holders: who it is, where it listens, and the authority of its certificates.

    Attributes:
        coordinator: The organisation, as policies name it in `who`.
        root_jwk: Its root public key.
        address: Where its front for nodes listens, host:port.
        authority: The certificate that its TLS certificates lead to, PEM.
        issued_ms: When it was written.
    """

    coordinator: Name
    root_jwk: dict[str, str]
    address: Address
    authority: Pem
    issued_ms: Milliseconds

    @field_validator("authority")
    @classmethod
    def _is_a_certificate(cls, value: str) -> str:
        return certificate_pem(value)

    @property
    def root(self) -> PublicKey:
        """The coordinator's root key. Believed once its thumbprint was compared."""
        return PublicKey.from_jwk(self.root_jwk)

    def sign(self, key: SigningKey) -> str:
        """The letter as it is handed over, signed by the coordinator's root key."""
        return sign(self.to_document(), type=DocumentType.INVITATION, key=key)

    @staticmethod
    def open(token: str) -> "Invitation":
        """Read an invitation.

        Raises:
            TrustRefused: It is not one, was changed, or is not signed by the root key that it names.
        """
        return _opened(Invitation, token, DocumentType.INVITATION)


def read_letter(data: bytes) -> str:
    """A letter's token out of a file's bytes.

    Raises:
        TrustRefused: It is no text.
    """
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise TrustRefused("not a signed letter", expected="a compact JWS", got="other bytes") from None


_Letter = TypeVar("_Letter", Registration, Invitation)


def _opened(letter: type[_Letter], token: str, document_type: DocumentType) -> _Letter:
    """A letter whose signature holds under the root key that it brings itself."""
    said = letter.from_document(parse(token).claimed())
    open_signed(token, type=document_type, key=said.root)
    return said
