"""An OpenID Connect provider on the loopback address: discovery, keys, authorization and token endpoint.

Strict about what the control plane must do (PKCE, redirect address, client secret, one use of a code), and able to
answer wrongly in every way that the control plane must refuse.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

_RSA = RSAKey.generate_key(2048, {"kid": "r1"})  # once: it takes a while
CLIENT_ID = "ringfence"
CLIENT_SECRET = "a secret that only the two know"  # noqa: S105 -- of this very test


class Issuer:
    """A provider that signs in whoever `person` says.

    Attributes:
        person: Claims of who is at the browser.
        claims: Claims put over those of each token, to be wrong on purpose; None removes one.
        algorithm: What tokens are signed with.
    """

    def __init__(self):
        self.person = {"sub": "u-1", "name": "Ada", "groups": ["fl-coordinators"]}
        self.claims = {}
        self.algorithm = "ES256"
        self.says_issuer = True
        self.broken = None
        self.keys = {"ES256": ECKey.generate_key("P-256", {"kid": "e1"}), "RS256": _RSA}
        self.published = [key.as_dict(private=False) for key in self.keys.values()]
        self.codes = {}
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer._get(self)

            def do_POST(self):
                outer._post(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rotate(self):
        """Sign with another key from now on, as providers do now and then."""
        self.keys["ES256"] = ECKey.generate_key("P-256", {"kid": secrets.token_hex(4)})
        self.published = [key.as_dict(private=False) for key in self.keys.values()]

    def toml(self, roles, *, secret_file=None, **more):
        """The file that describes this provider to a control plane."""
        lines = [f'issuer = "{self.url}"', f'client_id = "{CLIENT_ID}"']
        lines += [f'client_secret_file = "{secret_file}"'] if secret_file else []
        lines += [f'{name} = "{value}"' for name, value in more.items()]
        for rule in roles:
            lines += ["[[roles]]", *(f'{name} = "{value}"' for name, value in rule.items())]
        return "\n".join(lines) + "\n"

    def _get(self, handler):
        parts = urlsplit(handler.path)
        self.asked.append(parts.path)
        if self.broken == parts.path:
            _reply(handler, 500, {"error": "broken"})
        elif parts.path == "/.well-known/openid-configuration":
            _reply(handler, 200, {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            })  # fmt: skip
        elif parts.path == "/keys":
            _reply(handler, 200, {"keys": self.published})
        elif parts.path == "/authorize":
            self._authorize(handler, {name: values[0] for name, values in parse_qs(parts.query).items()})
        else:
            _reply(handler, 404, {})

    def _authorize(self, handler, asked):
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        back = {"code": code, "state": asked["state"], **({"iss": self.url} if self.says_issuer else {})}
        handler.send_response(302)
        handler.send_header("Location", f"{asked['redirect_uri']}?{urlencode(back)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _post(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.asked.append(urlsplit(handler.path).path)
        asked = self.codes.pop(form.get("code"), None)  # a code is good once
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if self.broken == "/token":
            _reply(handler, 500, {"error": "broken"})
        elif handler.headers.get("Authorization") != f"Basic {basic}":
            _reply(handler, 401, {"error": "invalid_client"})
        elif (
            asked is None
            or asked["code_challenge"] != challenge.rstrip(b"=").decode()
            or asked["redirect_uri"] != form["redirect_uri"]
        ):
            _reply(handler, 400, {"error": "invalid_grant"})
        else:
            _reply(handler, 200, {"token_type": "Bearer", "access_token": "unused", "id_token": self._token(asked)})

    def _token(self, asked):
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.person,
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "none":
            return ".".join(_part(one) for one in ({"alg": "none"}, claims)) + "."
        if self.algorithm == "HS256":
            # The old trick: the public key as a shared secret.
            return jwt.encode(
                {"alg": "HS256", "kid": "e1"},
                claims,
                OctKey.import_key(json.dumps(self.published[0])),
                algorithms=["HS256"],
            )
        key = self.keys[self.algorithm]
        return jwt.encode({"alg": self.algorithm, "kid": key.kid}, claims, key, algorithms=[self.algorithm])


def _part(document):
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _reply(handler, status, document):
    body = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
