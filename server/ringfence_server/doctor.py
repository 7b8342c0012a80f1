"""`ringfence doctor`: can this machine keep its promises? Each check says what it found and what to do."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import typer
from rich.table import Table

from ringfence_policy.errors import Fault, RingfenceError
from ringfence_policy.terminal import terminal
from ringfence_server.run_file import reach

_NEEDED = ("flwr", "torch", "opacus", "cedarpy", "joserfc", "numpy")
NOISE_SOURCE = "ringfence_client.noise:SecureNoise"
NOISE_CHECK = "ringfence_client.noise:check_noise"
KERNEL = "ringfence_client.cohort_kernel:best_kernel"


def examine(*, as_json: bool) -> int:
    """Run every check. Exit code 0 when all passed, else 1."""
    findings = [_finding(name, check) for name, check in CHECKS.items()]
    if as_json:
        document = [{"check": name, "passed": passed, "finding": words} for name, passed, words in findings]
        typer.echo(json.dumps(document))
    else:
        table = Table()
        for column in ("check", "", "finding"):
            table.add_column(column, overflow="fold")
        for name, passed, words in findings:
            table.add_row(name, "✓" if passed else "✗", words, style=None if passed else "bold red")
        terminal().print(table)
    return 0 if all(passed for _, passed, _ in findings) else 1


def _finding(name: str, check: Callable[[], str]) -> tuple[str, bool, str]:
    try:
        return name, True, check()
    except RingfenceError as error:
        return name, False, str(error)
    except Exception as error:  # noqa: BLE001 -- a check that cannot be made has failed, whatever stopped it
        return name, False, f"{type(error).__name__}: {error}"


def _python() -> str:
    return f"Python {sys.version.split()[0]}, {os.cpu_count()} cores"


def _libraries() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in _NEEDED)


def _engine() -> str:
    from ringfence_policy.gate import PolicyGate  # noqa: PLC0415
    from ringfence_policy.policy import read_policy  # noqa: PLC0415
    from ringfence_policy.probes import examine as find_faults  # noqa: PLC0415

    library = Path(str(sys.modules["ringfence_policy"].__path__[0])) / "library"
    policies = sorted(library.glob("*.toml"))
    for path in policies:
        faults = find_faults(PolicyGate(read_policy(path)))
        if faults:
            raise Fault("the policy engine decides wrongly at a limit", got="; ".join(faults), where=path.name)
    return f"Cedar and the reference evaluator agree at every limit of {len(policies)} policies"


def _noise() -> str:
    reach(NOISE_CHECK)(reach(NOISE_SOURCE)())
    return "the noise has the spread it claims, from the operating system's random source"


def _kernel() -> str:
    return f"many small models are trained together by the kernel '{reach(KERNEL)().name}'"


def _keys() -> str:
    from ringfence_policy.identity import DocumentType, SigningKey, open_signed, sign  # noqa: PLC0415

    key = SigningKey.generate("doctor/test-1")
    token = sign({"v": 1}, type=DocumentType.STATUS, key=key)
    open_signed(token, type=DocumentType.STATUS, key=key.public())
    return "a document was signed and verified"


def _ledger() -> str:
    from ringfence_policy.database import Database  # noqa: PLC0415
    from ringfence_policy.ledger import PrivacyLedger  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory, Database.open(Path(directory) / "l.db") as database:
        PrivacyLedger(database)
    return "a ledger can be kept on this file system, with durable writes"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "libraries": _libraries,
    "policy engine": _engine,
    "noise": _noise,
    "kernel": _kernel,
    "keys": _keys,
    "ledger": _ledger,
}
