"""The transport's own authority and certificates: TLS in its strictest reading takes them, and nobody else's."""

import datetime as dt
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ringfence_policy.transport_keys import Certified, make_authority, make_server_certificate, signed_by_node

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def authority():
    return make_authority("tree-consortium", now=NOW)


def greet(folder, *, server, trusted, name):
    """One TLS handshake with every check that OpenSSL has, on the loopback address; gives the protocol's version."""
    server.save(folder / "server.crt", folder / "server.key")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    asking = ssl.create_default_context(cadata=trusted.certificate)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                try:
                    serving.wrap_socket(connection, server_side=True).close()
                except OSError:
                    return  # the other side did not like the certificate

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname()) as raw,
                asking.wrap_socket(raw, server_hostname=name) as greeted,
            ):
                return greeted.version()
        finally:
            thread.join()


@pytest.mark.parametrize("name", ["forest.example", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_takes_its_certificate_under_every_name_of_it(tmp_path, authority, name):
    server = make_server_certificate(authority, ["forest.example", "127.0.0.1", "::1"], now=NOW)
    assert greet(tmp_path, server=server, trusted=authority, name=name) == "TLSv1.3"


def test_a_client_refuses_the_certificate_under_another_name(tmp_path, authority):
    server = make_server_certificate(authority, ["forest.example"], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greet(tmp_path, server=server, trusted=authority, name="wood.example")


def test_a_client_refuses_a_certificate_of_another_authority_of_the_same_name(tmp_path, authority):
    other = make_authority("tree-consortium", now=NOW)
    server = make_server_certificate(other, ["forest.example"], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(tmp_path, server=server, trusted=authority, name="forest.example")
    assert server.is_from(other)
    assert not server.is_from(authority)


def test_a_client_refuses_a_certificate_that_ran_out(tmp_path, authority):
    server = make_server_certificate(authority, ["forest.example"], now=NOW - dt.timedelta(days=400))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        greet(tmp_path, server=server, trusted=authority, name="forest.example")


def test_a_client_refuses_a_certificate_that_a_server_signed_with_its_own_key(tmp_path, authority):
    """Whoever steals the front's key can be the front, and not make further certificates."""
    server = make_server_certificate(authority, ["forest.example"], now=NOW)
    below = make_server_certificate(server, ["forest.example"], now=NOW)
    chain = Certified(below.certificate + server.certificate, below.private_key)
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(tmp_path, server=chain, trusted=authority, name="forest.example")


def test_a_certificate_never_outlives_its_authority(authority):
    late = authority.expires - dt.timedelta(days=10)
    assert make_server_certificate(authority, ["forest.example"], now=late).expires <= authority.expires


def test_private_keys_are_for_their_owner_alone_and_stand_in_no_repr(tmp_path, authority):
    authority.save(tmp_path / "authority.crt", tmp_path / "authority.key")
    assert stat.S_IMODE((tmp_path / "authority.key").stat().st_mode) == 0o600
    assert authority.private_key not in repr(authority)
    assert Certified.load(tmp_path / "authority.crt", tmp_path / "authority.key") == authority


def test_a_certificate_says_for_which_names_it_is(authority):
    assert make_server_certificate(authority, ["a.example", "10.1.2.3"], now=NOW).names == {"a.example", "10.1.2.3"}
    assert authority.names == frozenset()
    assert x509.load_pem_x509_certificate(authority.certificate.encode()).extensions.get_extension_for_class(
        x509.BasicConstraints
    ).value == x509.BasicConstraints(ca=True, path_length=0)


def test_a_signature_of_a_supernode_holds_for_its_key_and_its_message_alone():
    key, other = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    pem, other_pem = (
        one.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for one in (key, other)
    )
    signature = key.sign(b"2026-11-26T05:00:00", ec.ECDSA(SHA256()))
    assert signed_by_node(pem, b"2026-11-26T05:00:00", signature)
    assert not signed_by_node(pem, b"2026-11-26T05:00:01", signature)
    assert not signed_by_node(other_pem, b"2026-11-26T05:00:00", signature)
    assert not signed_by_node(pem, b"2026-11-26T05:00:00", b"")
