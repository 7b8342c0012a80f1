"""A data officer's desk in a test: a holder's directory that was set up by commands, and the commands themselves."""

import datetime as dt
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tiny_scenario import COORDINATOR, SCHEMA, leaves
from typer.testing import CliRunner, Result

from ringfence_client.cli import app
from ringfence_policy.identity import SigningKey
from ringfence_policy.letters import Invitation

OPTIONS = {
    "--holder-id": "oak",
    "--name": "Oak Institute",
    "--region": "CH",
    "--dataset": "oak-leaves",
    "--weight": "60",
    "--epsilon": "4",
    "--delta": "1e-5",
    "--coordinator": COORDINATOR,
}


def node(*arguments: object, said: str | None = None) -> Result:
    """`ringfence-node` with these arguments; a crash fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=said)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*arguments: object, exit_code: int = 0) -> dict:
    """What `ringfence-node ... --json` answers."""
    result = node(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def options(**changes: str | None) -> list[str]:
    """The options of `init`, with some changed, or left out where None."""
    given = OPTIONS | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [part for name, value in given.items() if value is not None for part in (name, value)]


def bring_schema_and_data(directory: Path, *, rows: int = 60) -> None:
    """What comes from the coordinator and from the hospital's own systems."""
    (directory / "schema.toml").write_text(SCHEMA)
    (directory / "data.csv").write_text(leaves(rows, seed=7))


def set_up_holder(directory: Path, **changes: str | None) -> Path:
    """A holder that was set up by commands alone."""
    answer("init", directory, *options(**changes))
    bring_schema_and_data(directory)
    answer("init", directory)
    return directory


def invitation(root: SigningKey, *, issued_ms: int = 1_000, **changes: object) -> str:
    """A coordinator's letter."""
    members = {
        "coordinator": COORDINATOR,
        "root_jwk": root.public().jwk,
        "address": "forest.example:9092",
        "authority": _certificate(),
        "issued_ms": issued_ms,
    }
    return Invitation(**(members | changes)).sign(root)


def _certificate() -> str:
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
