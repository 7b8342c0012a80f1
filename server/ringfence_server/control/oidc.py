"""Single sign-on by OpenID Connect: the one module that speaks to an identity provider and believes its tokens.

Discovery, the provider's keys and the authorization code flow with PKCE, state and nonce. What a person may do here is
decided by the file of roles beside the issuer's address: who is in no listed group does not get in.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import Field, model_validator

from ringfence_policy.errors import Fault, Refused, UsageError
from ringfence_policy.strict_toml import StrictDocument, read_toml
from ringfence_server.control.actor import Actor, Role

# Signatures alone: `none` and shared secrets are no proof of who wrote a token.
ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "RS384", "RS512", "Ed25519", "EdDSA")
_LEEWAY_SECONDS = 60
_FRESH_SECONDS = 3600
_ASK_AGAIN_SECONDS = 10
_TIMEOUT_SECONDS = 10.0
_LARGEST_REPLY = 1 << 20
_LONGEST_NAME = 120


class SignInRefused(Refused):
    """A sign-in does not hold: a used link, an unknown account, or an answer of the provider that proves nothing."""

    code = "sign-in-refused"


class ProviderFault(Fault):
    """The identity provider does not answer, or not as OpenID Connect says."""

    code = "provider-fault"
    http_status = 502


class RoleRule(StrictDocument):
    """Who has one role."""

    value: Annotated[str, Field(min_length=1)]
    role: Annotated[Role, Field(strict=False)]
    holder: str | None = None

    @model_validator(mode="after")
    def _holder_names_one(self) -> "RoleRule":
        if (self.role is Role.HOLDER) != (self.holder is not None):
            raise ValueError("a rule for the role holder names the holder, and no other rule does")
        return self


class OidcFile(StrictDocument):
    """A provider and what its groups may do here, as an administrator writes it."""

    issuer: Annotated[str, Field(min_length=1)]
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: str | None = None
    role_claim: str = "groups"
    name_claim: str = "name"
    scopes: str = "openid profile email"
    roles: Annotated[list[RoleRule], Field(min_length=1)]


@dataclass(frozen=True)
class Attempt:
    """A sign-in that was begun. All three are secret until it is over; it is kept at the server, for one use."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def fresh(cls) -> "Attempt":
        """A new one."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))


class IdentityProvider:
    """An OpenID Connect provider.

    Args:
        file: Which one, and who has which role.
        secret: The client's secret, or None for a public client, which PKCE protects alone.
        redirect_uri: Where the provider sends people back to.
    """

    def __init__(self, file: OidcFile, *, secret: str | None, redirect_uri: str) -> None:
        self._file = file
        self._secret = secret
        self._redirect_uri = redirect_uri
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False, follow_redirects=False)
        self._lock = threading.Lock()
        self._metadata: Mapping[str, Any] = {}
        self._metadata_at = 0.0
        self._keys: KeySet | None = None
        self._keys_at = 0.0
        _require_https(file.issuer)

    @classmethod
    def from_file(cls, path: Path, *, address: str) -> "IdentityProvider":
        """Read the file of a provider.

        Args:
            path: The TOML file; the secret's file is relative to it.
            address: The control plane's own origin.

        Raises:
            DocumentInvalid: It does not say what it must.
            UsageError: The secret cannot be read.
        """
        file = read_toml(path, OidcFile)
        secret = None
        if file.client_secret_file is not None:
            kept = path.parent / file.client_secret_file
            try:
                secret = kept.read_text().strip()
            except (OSError, ValueError) as error:
                raise UsageError(
                    "the client's secret cannot be read",
                    expected="a text file that this account may read",
                    got=type(error).__name__,
                    where=str(kept),
                    next_step="write it there, or leave client_secret_file out for a public client",
                ) from None
        return cls(file, secret=secret, redirect_uri=f"{address}/signin/return")

    def begin(self, attempt: Attempt) -> str:
        """Where to send a browser to sign in."""
        challenge = hashlib.sha256(attempt.verifier.encode()).digest()
        question = urlencode({
            "response_type": "code",
            "client_id": self._file.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": self._file.scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        })  # fmt: skip
        address = self._endpoint("authorization_endpoint")
        return f"{address}{'&' if urlsplit(address).query else '?'}{question}"

    def finish(self, attempt: Attempt, *, code: str, state: str, issuer: str | None) -> Actor:
        """Who came back from the provider.

        Args:
            attempt: What this very browser began.
            code: The code that it brought.
            state: The state that it brought.
            issuer: The issuer that it brought (RFC 9207), where the provider says it.

        Raises:
            SignInRefused: Something does not hold, or this person has no role here.
            ProviderFault: The provider does not answer as it must.
        """
        if not secrets.compare_digest(state.encode("utf-8", "surrogatepass"), attempt.state.encode()):
            raise SignInRefused("this answer belongs to no sign-in of this browser", next_step="sign in again")
        if issuer is not None and issuer != self._file.issuer:
            raise SignInRefused("this answer is from another provider", expected=self._file.issuer)
        claims = self._believed(self._exchanged(code, attempt), nonce=attempt.nonce)
        return self._actor(claims)

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def _exchanged(self, code: str, attempt: Attempt) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": attempt.verifier,
            "client_id": self._file.client_id,
        }
        auth = httpx.BasicAuth(self._file.client_id, self._secret) if self._secret is not None else None
        reply = self._asked("POST", self._endpoint("token_endpoint"), data=form, auth=auth)
        token = reply.get("id_token")
        if not isinstance(token, str):
            raise SignInRefused("the provider gave no identity for this code", next_step="sign in again")
        return token

    def _believed(self, token: str, *, nonce: str) -> dict[str, Any]:
        registry = jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": self._file.issuer},
            aud={"essential": True, "value": self._file.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            try:
                claims = jwt.decode(token, self._key_set(), algorithms=list(ALGORITHMS)).claims
            except (JoseError, ValueError):
                # The provider may have changed its keys since they were read: once more, with fresh ones.
                claims = jwt.decode(token, self._key_set(again=True), algorithms=list(ALGORITHMS)).claims
            registry.validate(claims)
        except (JoseError, ValueError) as error:
            raise SignInRefused(
                "the provider's token does not hold", got=type(error).__name__, next_step="sign in again"
            ) from None
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self._file.client_id:
            raise SignInRefused("the provider's token was made for another client")
        return claims

    def _actor(self, claims: Mapping[str, Any]) -> Actor:
        said = claims.get(self._file.role_claim, [])
        groups = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        for rule in self._file.roles:
            if rule.value in groups:
                name = str(claims.get(self._file.name_claim) or claims["sub"])
                return Actor(
                    role=rule.role,
                    name=_plain(name),
                    holder=rule.holder,
                    via="session",
                    account=f"{self._file.issuer}#{claims['sub']}",
                )
        raise SignInRefused(
            "this account has no role here",
            expected=f"one of the groups that the control plane's file lists, in the claim {self._file.role_claim}",
            next_step="ask the administrator of this control plane for one",
        )

    def _endpoint(self, name: str) -> str:
        with self._lock:
            if time.monotonic() - self._metadata_at > _FRESH_SECONDS or not self._metadata:
                found = self._asked("GET", f"{self._file.issuer.rstrip('/')}/.well-known/openid-configuration")
                if found.get("issuer") != self._file.issuer:
                    raise ProviderFault(
                        "the provider calls itself by another name",
                        expected=self._file.issuer,
                        got=str(found.get("issuer"))[:200],
                    )
                self._metadata, self._metadata_at = found, time.monotonic()
            address = self._metadata.get(name)
        if not isinstance(address, str):
            raise ProviderFault("the provider's description lacks an address", expected=name)
        _require_https(address)
        return address

    def _key_set(self, *, again: bool = False) -> KeySet:
        address = self._endpoint("jwks_uri")
        with self._lock:
            age = time.monotonic() - self._keys_at
            if self._keys is None or age > _FRESH_SECONDS or (again and age > _ASK_AGAIN_SECONDS):
                found = self._asked("GET", address)
                try:
                    self._keys = KeySet.import_key_set(found)  # type: ignore[arg-type] # it checks what it is given
                except (JoseError, ValueError, KeyError, TypeError) as error:
                    raise ProviderFault("the provider's keys cannot be read", got=type(error).__name__) from None
                self._keys_at = time.monotonic()
            return self._keys

    def _asked(
        self, method: str, address: str, *, data: Mapping[str, str] | None = None, auth: httpx.BasicAuth | None = None
    ) -> dict[str, Any]:
        """A reply of the provider as JSON. What it says is never repeated: it may hold tokens."""
        try:
            with self._client.stream(
                method, address, data=data, auth=auth, headers={"accept": "application/json"}
            ) as reply:
                body = b""
                for piece in reply.iter_bytes():
                    body += piece
                    if len(body) > _LARGEST_REPLY:
                        raise ProviderFault("the provider's reply is too large", where=address)
                if method == "POST" and reply.status_code in (400, 401, 403):
                    raise SignInRefused("the provider refuses the code", next_step="sign in again")
                if reply.status_code != httpx.codes.OK:
                    raise ProviderFault("the provider does not answer", got=f"HTTP {reply.status_code}", where=address)
            found = json.loads(body)
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise ProviderFault("the provider does not answer", got=type(error).__name__, where=address) from None
        if not isinstance(found, dict):
            raise ProviderFault("the provider does not answer as it must", expected="a JSON object", where=address)
        return found


def _require_https(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        return
    raise ProviderFault("a provider is reached by https alone", expected="https://...", got=address[:200])


def _plain(name: str) -> str:
    return "".join(mark for mark in name if mark.isprintable())[:_LONGEST_NAME]
