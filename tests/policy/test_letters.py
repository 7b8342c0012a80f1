"""The letters by which coordinator and data holder get to know each other carry their own proof."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, SigningKey, sign
from ringfence_policy.letters import Invitation, Registration, read_letter
from ringfence_policy.protocol import HolderCard
from ringfence_policy.transport_keys import public_pem

ROOT = SigningKey(kid="oak/root-1", seed=bytes(range(32)))
THIEF = SigningKey(kid="oak/root-1", seed=bytes(range(1, 33)))


def pem(curve=None):
    key = ec.generate_private_key(ec.SECP384R1() if curve is None else curve).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


FLOWER_KEY = pem()


def certificate():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


def registration(**changes):
    card = HolderCard(holder_id="oak", name="Oak", region="CH", weight=100, root=ROOT.public().jwk)
    return Registration(**({"card": card, "flower_key": FLOWER_KEY, "issued_ms": 1_000} | changes))


def invitation(**changes):
    members = {
        "coordinator": "tree-consortium",
        "root_jwk": ROOT.public().jwk,
        "address": "forest.example:9092",
        "authority": certificate(),
        "issued_ms": 1_000,
    }
    return Invitation(**(members | changes))


@pytest.mark.parametrize("letter", [registration(), invitation()], ids=["registration", "invitation"])
def test_a_letter_reads_as_it_was_written(letter):
    assert type(letter).open(letter.sign(ROOT)) == letter
    assert type(letter).open(letter.sign(ROOT)).root == ROOT.public()


@pytest.mark.parametrize("letter", [registration(), invitation()], ids=["registration", "invitation"])
def test_a_letter_that_another_key_signed_is_refused(letter):
    with pytest.raises(TrustRefused, match="the signature does not hold"):
        type(letter).open(letter.sign(THIEF))


def test_a_registration_whose_flower_key_was_exchanged_is_refused():
    head, _, signature = registration().sign(ROOT).split(".")
    other = registration(flower_key=pem()).sign(THIEF).split(".")[1]
    with pytest.raises(TrustRefused, match="the signature does not hold"):
        Registration.open(f"{head}.{other}.{signature}")


def test_one_letter_is_never_read_as_the_other():
    with pytest.raises(TrustRefused):
        Invitation.open(registration().sign(ROOT))
    with pytest.raises(TrustRefused, match="another type"):
        Registration.open(sign(registration().to_document(), type=DocumentType.INVITATION, key=ROOT))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flower_key", pem(ec.SECP256R1())),
        ("flower_key", FLOWER_KEY.replace("\n", "\r\n")),
        ("flower_key", "a key"),
        ("issued_ms", -1),
        ("extra", 1),
    ],
)
def test_a_registration_of_another_shape_is_refused(name, value):
    document = registration().to_document() | {name: value}
    with pytest.raises(TrustRefused, match="does not have the members"):
        Registration.open(sign(document, type=DocumentType.REGISTRATION, key=ROOT))


@pytest.mark.parametrize(
    "address", ["forest", "forest:port", "forest:1234567", "http://forest:80", "a b:80", "-x:80", ""]
)
def test_an_invitation_to_no_address_is_refused(address):
    document = invitation().to_document() | {"address": address}
    with pytest.raises(TrustRefused, match="does not have the members"):
        Invitation.open(sign(document, type=DocumentType.INVITATION, key=ROOT))


@pytest.mark.parametrize("address", ["127.0.0.1:9092", "[::1]:9092", "forest.example:1"])
def test_addresses_are_names_or_numbers_with_a_port(address):
    assert Invitation.open(invitation(address=address).sign(ROOT)).address == address


def test_a_supernodes_key_has_one_form_and_one_curve():
    assert public_pem(FLOWER_KEY.replace("\n", "\r\n")) == FLOWER_KEY
    with pytest.raises(ValueError, match="P-384"):
        public_pem(pem(ec.SECP256R1()))


def test_a_file_that_is_no_letter_is_refused():
    assert read_letter(b" token\n") == "token"
    with pytest.raises(TrustRefused, match="not a signed letter"):
        read_letter(b"\xff\xfe")
