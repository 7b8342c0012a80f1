"""Keys and signatures: one spelling for each document, and nothing but Ed25519."""

import base64
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OctKey, OKPKey

from ringfence_policy import identity
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import DocumentType, PublicKey, SigningKey, TrustReason, open_signed, parse, sign

KEY = SigningKey(kid="cleveland/policy-1", seed=bytes(range(32)))
OTHER = SigningKey(kid="cleveland/policy-1", seed=bytes(range(1, 33)))
DOCUMENT = {"policy_id": "cardiac", "version": 1}


def assert_refused(token, reason, *, key=KEY, document_type=DocumentType.POLICY):
    with pytest.raises(TrustRefused) as caught:
        open_signed(token, type=document_type, key=key.public())
    assert caught.value.summary == reason


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_token(header, payload, key=KEY):
    """A token whose parts are signed by the real key but are not what `sign` would write."""
    signing_input = f"{b64(header)}.{b64(payload)}"
    okp = OKPKey.import_key(identity._PUBLIC_MEMBERS | {"x": b64(key.public().raw), "d": b64(key.seed)})
    signature = okp.raw_value.sign(signing_input.encode())
    return f"{signing_input}.{b64(signature)}"


HEADER = b'{"alg":"Ed25519","kid":"cleveland/policy-1","typ":"ringfence-policy+jws"}'


def test_a_signed_document_opens_to_what_was_signed():
    token = sign(DOCUMENT, type=DocumentType.POLICY, key=KEY)
    assert open_signed(token, type=DocumentType.POLICY, key=KEY.public()) == DOCUMENT
    assert raw_token(HEADER, b'{"policy_id":"cardiac","version":1}') == token


def test_the_key_derivation_and_signature_match_rfc_8037_appendix_a():
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    key = SigningKey(kid="example", seed=seed)
    assert key.public().jwk["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert key.public().thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@given(st.dictionaries(st.text(max_size=8), st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8), max_size=5))
def test_signing_is_deterministic_and_round_trips(document):
    token = sign(document, type=DocumentType.STATUS, key=KEY)
    assert token == sign(dict(reversed(document.items())), type=DocumentType.STATUS, key=KEY)
    assert open_signed(token, type=DocumentType.STATUS, key=KEY.public()) == document


def test_every_single_character_change_of_a_token_is_refused():
    token = sign(DOCUMENT, type=DocumentType.POLICY, key=KEY)
    for place in range(len(token)):
        for replacement in ("A", "B", "-", "_", ".", "=", "+", "\n", "é"):
            if token[place] != replacement:
                with pytest.raises(TrustRefused):
                    open_signed(
                        token[:place] + replacement + token[place + 1 :], type=DocumentType.POLICY, key=KEY.public()
                    )


def test_a_token_cut_or_extended_anywhere_is_refused():
    token = sign(DOCUMENT, type=DocumentType.POLICY, key=KEY)
    for cut in range(len(token)):
        with pytest.raises(TrustRefused):
            open_signed(token[:cut], type=DocumentType.POLICY, key=KEY.public())
    for tail in ("A", "=", "==", ".", ".e30", "\n", " "):
        with pytest.raises(TrustRefused):
            open_signed(token + tail, type=DocumentType.POLICY, key=KEY.public())


def test_another_key_of_the_same_name_is_refused():
    assert_refused(sign(DOCUMENT, type=DocumentType.POLICY, key=OTHER), TrustReason.SIGNATURE)


def test_a_document_is_never_read_as_another_type():
    assert_refused(sign(DOCUMENT, type=DocumentType.STATUS, key=KEY), TrustReason.WRONG_TYPE)


def test_alg_none_and_hmac_with_the_public_key_are_refused():
    none = b'{"alg":"none","kid":"cleveland/policy-1","typ":"ringfence-policy+jws"}'
    assert_refused(f"{b64(none)}.{b64(b'{}')}.", TrustReason.ALGORITHM)
    header = {"alg": "HS256", "kid": KEY.kid, "typ": "ringfence-policy+jws"}
    forged = jws.serialize_compact(header, b"{}", OctKey.import_key(KEY.public().raw), algorithms=["HS256"])
    assert_refused(forged, TrustReason.ALGORITHM)
    eddsa = raw_token(HEADER.replace(b"Ed25519", b"EdDSA"), b"{}")
    assert_refused(eddsa, TrustReason.ALGORITHM)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"version":1,"policy_id":"cardiac"}',
        b'{"policy_id":"cardiac", "version":1}',
        b'{"policy_id":"cardiac","version":1,"version":1}',
        b'{"policy_id":"cardiac","version":1.0}',
        b'{"policy_id":"cardiac","version":1e0}',
        b'{"policy_id":"cardiac","version":NaN}',
        b'{"policy_id":"card\\u0069ac","version":1}',
        b'{"version":9007199254740993}',
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
    ],
)
def test_a_payload_that_is_not_canonical_is_refused_even_when_its_signature_holds(payload):
    assert_refused(raw_token(HEADER, payload), TrustReason.NOT_CANONICAL)


@pytest.mark.parametrize("payload", [b"[]", b'"text"', b"1", b"null"])
def test_a_payload_that_is_not_an_object_is_refused(payload):
    assert_refused(raw_token(HEADER, payload), TrustReason.WRONG_SHAPE)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (HEADER.replace(b'"alg"', b' "alg"'), TrustReason.NOT_CANONICAL),
        (HEADER[:-1] + b',"x":"y"}', TrustReason.MALFORMED),
        (b'{"alg":"Ed25519","b64":false,"crit":["b64"],"kid":"k","typ":"ringfence-policy+jws"}', TrustReason.MALFORMED),
        (b'{"alg":"Ed25519","kid":1,"typ":"ringfence-policy+jws"}', TrustReason.MALFORMED),
        (b'{"alg":"Ed25519","kid":"k","typ":"JWT"}', TrustReason.WRONG_TYPE),
        (b'{"alg":"Ed25519","kid":"k","typ":[]}', TrustReason.WRONG_TYPE),
        (b'{"alg":"Ed25519","kid":"k"}', TrustReason.MALFORMED),
        (b"[]", TrustReason.ALGORITHM),
    ],
)
def test_a_header_says_algorithm_key_and_type_and_nothing_else(header, reason):
    assert_refused(raw_token(header, b"{}"), reason)


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "....", "e30.e30.e30", None, b"e30.e30.e30", 7])
def test_garbage_is_refused(token):
    with pytest.raises(TrustRefused):
        parse(token)


def test_an_oversize_token_is_refused_before_it_is_decoded():
    with pytest.raises(TrustRefused) as caught:
        parse("A" * (identity.LARGEST_TOKEN_CHARACTERS + 1))
    assert caught.value.summary == TrustReason.OVERSIZE


def test_a_document_of_a_thousand_holders_can_be_signed_and_opened():
    """joserfc's default would sign it and then refuse to open it."""
    files = {f"holders/h{number}/log.jsonl": "sha256:" + "0" * 64 for number in range(5000)}
    token = sign(files, type=DocumentType.MANIFEST, key=KEY)
    assert open_signed(token, type=DocumentType.MANIFEST, key=KEY.public()) == files
    with pytest.raises(ValueError, match="at most"):
        sign({"text": "x" * identity.LARGEST_PAYLOAD_BYTES}, type=DocumentType.MANIFEST, key=KEY)


def test_floats_cannot_be_signed():
    with pytest.raises(TypeError):
        sign({"epsilon": 0.5}, type=DocumentType.POLICY, key=KEY)


def test_a_public_key_round_trips_and_a_private_jwk_is_not_one():
    public = KEY.public()
    assert PublicKey.from_jwk(public.jwk) == public
    for broken in (
        {**public.jwk, "d": b64(KEY.seed)},
        {**public.jwk, "crv": "X25519"},
        {**public.jwk, "x": public.jwk["x"] + "A"},
        {**public.jwk, "kid": "../key"},
        {**public.jwk, "x": 7},
        {},
    ):
        with pytest.raises(TrustRefused):
            PublicKey.from_jwk(broken)


def test_keys_of_small_order_are_refused():
    """Under such a key one signature fits every message. The points are computed here by adding a point to itself."""
    p = identity._PRIME
    d = -121665 * pow(121666, -1, p) % p

    def add(a, b):
        (x1, y1), (x2, y2) = a, b
        t = d * x1 * x2 * y1 * y2 % p
        return ((x1 * y2 + x2 * y1) * pow(1 + t, -1, p) % p, (y1 * y2 + x1 * x2) * pow(1 - t, -1, p) % p)

    def x_of(y):
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        if (x * x - square) % p:
            x = x * pow(2, (p - 1) // 4, p) % p
        assert (x * x - square) % p == 0
        return x

    point = (x_of(identity._ORDER_8_Y), identity._ORDER_8_Y)
    torsion = {(0, 1)}
    running = point
    while running != (0, 1):
        torsion.add(running)
        running = add(running, point)
    assert len(torsion) == 8
    assert {y for _, y in torsion} == {y % p for y in identity._SMALL_ORDER_Y}
    for y in identity._SMALL_ORDER_Y:
        for sign_bit in (0, 1 << 255):
            if y + sign_bit < 2**256:
                with pytest.raises(TrustRefused):
                    PublicKey(kid="evil", raw=(y | sign_bit).to_bytes(32, "little"))


def test_a_key_file_is_private_and_never_overwritten(tmp_path):
    path = tmp_path / "policy.key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path) == KEY
    with pytest.raises(TrustRefused):
        OTHER.save(path)
    assert SigningKey.load(path) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_key_file_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "policy.key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(TrustRefused) as caught:
        SigningKey.load(path)
    assert caught.value.summary == TrustReason.KEY_FILE
    assert "chmod 600" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"kid":"a"}', b'{"d":7,"kid":"a"}', b'{"d":"AA","kid":"a"}', b"\xff"]
)
def test_a_broken_key_file_is_refused_without_a_traceback_of_its_content(tmp_path, content):
    path = tmp_path / "policy.key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(TrustRefused):
        SigningKey.load(path)
    with pytest.raises(TrustRefused):
        SigningKey.load(tmp_path / "missing.key")


def test_two_generated_keys_differ():
    assert SigningKey.generate("a").seed != SigningKey.generate("a").seed


def test_a_private_key_does_not_show_in_its_repr():
    assert b64(KEY.seed) not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)


def test_importing_identity_loads_no_cryptography():
    """`ringfence --help` must not wait for a signature library."""
    code = "import sys, json, ringfence_policy.identity; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    loaded = json.loads(done.stdout)
    assert not [name for name in loaded if name.split(".")[0] in {"joserfc", "cryptography", "pydantic"}]


def test_long_tokens_of_anybody_are_remembered_in_small_number_only():
    header = base64.urlsafe_b64encode(b'{"alg":"Ed25519","kid":"a","typ":"ringfence-status+jws"}').rstrip(b"=").decode()
    before = identity._parse.cache_info().currsize
    for number in range(20):
        body = base64.urlsafe_b64encode(bytes([number]) * 99_999).decode()
        parse(f"{header}.{body}.AAAA")
    assert identity._parse.cache_info().currsize == before
    assert identity._parse_long.cache_info().currsize <= identity._REMEMBERED_LONG_TOKENS
