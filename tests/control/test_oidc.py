"""Single sign-on against a real provider on the loopback address, and all that its answers may be wrong in."""

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_issuer import CLIENT_SECRET

from ringfence_policy.errors import DocumentInvalid, UsageError
from ringfence_server.control.actor import Role
from ringfence_server.control.oidc import Attempt, IdentityProvider, ProviderFault, SignInRefused

ROLES = (
    {"value": "fl-coordinators", "role": "coordinator"},
    {"value": "cleveland-officers", "role": "holder", "holder": "cleveland"},
)
ADDRESS = "https://control.example.org"


@pytest.fixture
def provider(issuer, tmp_path):
    (tmp_path / "secret").write_text(CLIENT_SECRET + "\n")
    (tmp_path / "oidc.toml").write_text(issuer.toml(ROLES, secret_file="secret"))  # noqa: S106 -- a file's name
    found = IdentityProvider.from_file(tmp_path / "oidc.toml", address=ADDRESS)
    yield found
    found.close()


def _sent_back(provider, attempt):
    """What the browser brings back from the provider."""
    reply = httpx.get(provider.begin(attempt), trust_env=False)
    assert reply.status_code == 302
    back = urlsplit(reply.headers["location"])
    assert back.geturl().startswith(f"{ADDRESS}/signin/return?")
    return {name: values[0] for name, values in parse_qs(back.query).items()}


def _sign_in(provider, **wrong):
    attempt = Attempt.fresh()
    back = _sent_back(provider, attempt) | wrong
    return provider.finish(attempt, code=back["code"], state=back["state"], issuer=back.get("iss"))


def test_a_person_in_a_listed_group_gets_the_role_of_it(provider, issuer):
    actor = _sign_in(provider)
    assert (actor.role, actor.name, actor.holder) == (Role.COORDINATOR, "Ada", None)
    assert actor.account == f"{issuer.url}#u-1"


def test_an_officer_is_bound_to_the_holder_of_the_group(provider, issuer):
    issuer.person = {"sub": "u-2", "name": "Bo", "groups": ["staff", "cleveland-officers"]}
    actor = _sign_in(provider)
    assert (actor.role, actor.holder) == (Role.HOLDER, "cleveland")


def test_tokens_signed_by_rsa_are_believed_too(provider, issuer):
    issuer.algorithm = "RS256"
    assert _sign_in(provider).name == "Ada"


def test_a_name_carries_no_control_characters_into_logs_and_pages(provider, issuer):
    issuer.person["name"] = "Ada\r\nSet-Cookie: x=1" + "y" * 500
    name = _sign_in(provider).name
    assert name.startswith("AdaSet-Cookie")
    assert len(name) <= 120


@pytest.mark.parametrize("groups", [[], ["strangers"], "fl-coordinators-not", None, 7, {"fl-coordinators": True}])
def test_who_is_in_no_listed_group_has_no_role(provider, issuer, groups):
    issuer.person["groups"] = groups
    with pytest.raises(SignInRefused, match="no role here"):
        _sign_in(provider)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "somebody-else"},
        {"aud": ["ringfence", "somebody-else"]},  # and no azp
        {"aud": ["ringfence", "somebody-else"], "azp": "somebody-else"},
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"iat": 4_102_444_800},  # in the year 2100
        {"sub": None},
        {"nonce": "of another sign-in"},
        {"nonce": None},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_signs_nobody_in(provider, issuer, claims):
    issuer.claims = claims
    with pytest.raises(SignInRefused):
        _sign_in(provider)


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_a_token_without_a_real_signature_signs_nobody_in(provider, issuer, algorithm):
    issuer.algorithm = algorithm
    with pytest.raises(SignInRefused):
        _sign_in(provider)


def test_a_token_signed_by_a_key_that_the_provider_does_not_publish_signs_nobody_in(provider, issuer):
    published = issuer.published
    issuer.rotate()
    issuer.published = published
    with pytest.raises(SignInRefused):
        _sign_in(provider)


def test_keys_that_the_provider_changed_are_read_again(provider, issuer, monkeypatch):
    assert _sign_in(provider).name == "Ada"
    monkeypatch.setattr("ringfence_server.control.oidc._ASK_AGAIN_SECONDS", 0)
    issuer.rotate()
    assert _sign_in(provider).name == "Ada"


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "of somebody else"},
        {"state": "jemand änderes"},
        {"state": "\udcff"},
        {"code": "made up"},
        {"iss": "https://other.example"},
    ],
)
def test_an_answer_that_belongs_to_another_sign_in_signs_nobody_in(provider, wrong):
    with pytest.raises(SignInRefused):
        _sign_in(provider, **wrong)


def test_a_code_without_the_verifier_that_it_was_asked_with_is_worth_nothing(provider):
    """PKCE: who intercepts a code in the browser cannot use it, not even through this control plane."""
    mine, thiefs = Attempt.fresh(), Attempt.fresh()
    back = _sent_back(provider, mine)
    with pytest.raises(SignInRefused):
        provider.finish(
            Attempt(state=mine.state, nonce=mine.nonce, verifier=thiefs.verifier),
            code=back["code"],
            state=back["state"],
            issuer=None,
        )


def test_a_code_works_once(provider):
    attempt = Attempt.fresh()
    back = _sent_back(provider, attempt)
    provider.finish(attempt, code=back["code"], state=back["state"], issuer=None)
    with pytest.raises(SignInRefused):
        provider.finish(attempt, code=back["code"], state=back["state"], issuer=None)


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token"])
def test_a_provider_that_does_not_answer_is_a_fault_that_says_so_without_its_words(provider, issuer, path):
    issuer.broken = path
    with pytest.raises(ProviderFault, match="does not answer") as fault:
        _sign_in(provider)
    assert fault.value.http_status == 502


def test_a_provider_by_plain_http_on_another_machine_is_not_used(tmp_path):
    (tmp_path / "oidc.toml").write_text(
        'issuer = "http://sso.example.org"\nclient_id = "x"\n[[roles]]\nvalue = "a"\nrole = "regulator"\n'
    )
    with pytest.raises(ProviderFault, match="https"):
        IdentityProvider.from_file(tmp_path / "oidc.toml", address=ADDRESS)


@pytest.mark.parametrize("kept", [None, b"\xff"], ids=["missing", "no text"])
def test_a_secret_that_cannot_be_read_is_said_by_its_place(tmp_path, issuer, kept):
    if kept is not None:
        (tmp_path / "secret").write_bytes(kept)
    (tmp_path / "oidc.toml").write_text(issuer.toml(ROLES, secret_file="secret"))  # noqa: S106 -- a file's name
    with pytest.raises(UsageError, match="secret cannot be read"):
        IdentityProvider.from_file(tmp_path / "oidc.toml", address=ADDRESS)


@pytest.mark.parametrize(
    "rule",
    ['role = "holder"', 'role = "regulator"\nholder = "cleveland"', 'role = "king"', 'role = "regulator"\nextra = 1'],
)
def test_a_file_of_roles_that_means_nothing_is_refused(tmp_path, rule):
    (tmp_path / "oidc.toml").write_text(
        f'issuer = "https://sso.example.org"\nclient_id = "x"\n[[roles]]\nvalue = "a"\n{rule}\n'
    )
    with pytest.raises(DocumentInvalid):
        IdentityProvider.from_file(tmp_path / "oidc.toml", address=ADDRESS)
