"""Secrets that sign people in: how they are made, and what of them is kept.

The store keeps the SHA-256 of each and never the secret, so that whoever reads the database can sign in as nobody. They
are 256 bits from the operating system, for which a plain hash is enough: there is nothing to guess.
"""

import hashlib
import secrets
from datetime import UTC, datetime


def new_secret() -> str:
    """A fresh secret of 43 characters that may stand in a URL or a cookie."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a secret, and looked up by: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def now() -> int:
    """Seconds since 1970, as sign-on counts time."""
    return int(datetime.now(UTC).timestamp())
