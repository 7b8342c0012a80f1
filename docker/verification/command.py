"""`docker/verify`: its options, its steps in order, and what it leaves, which is nothing."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from verification import engine
from verification.containment import check_containment, check_rights, check_walls
from verification.control_plane import SERVICES as CONTROL_SERVICES
from verification.control_plane import check_control_plane, write_password
from verification.engine import EngineFault, Stack
from verification.findings import Findings
from verification.hospitals import set_up
from verification.study import SERVICES, Study, check_results

HELD, FAULT, USAGE, DID_NOT_HOLD = 0, 1, 2, 3
_DEFAULT_BASE: Final = "python:3.11-slim-bookworm"
_DEFAULT_POSTGRES: Final = "postgres:17.6-bookworm"
_EPILOGUE: Final = """\
exit codes: 0 all held; 1 a step failed; 2 wrong usage, or no engine; 3 something did not hold.
Everything that it starts is of a project of its own and is removed at the end, volumes included, whatever happens.
Without a network: --base-image from a local image, --wheels with all wheels or --pip-conf with an index of yours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    options = _options(arguments)
    findings = Findings(say=lambda text: print(text, file=sys.stderr, flush=True))
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        findings.figures["versions"] = engine.versions()
    except EngineFault as fault:
        print(f"There is no container engine to verify with: {fault}", file=sys.stderr)
        return USAGE
    fault: str | None = None
    try:
        _verify(options, findings)
    except (EngineFault, TimeoutError, ValueError, KeyError) as error:
        fault = str(error) if isinstance(error, (EngineFault, TimeoutError)) else f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        fault = "interrupted"
    if options.json:
        print(json.dumps({**findings.document(), "fault": fault}))
    else:
        print(findings.table())
    if fault is not None:
        print(f"\nStopped: {fault}", file=sys.stderr)
        return FAULT
    return HELD if findings.all_held else DID_NOT_HOLD


def _verify(options: argparse.Namespace, findings: Findings) -> None:
    name = f"ringfence-verify-{os.getpid()}"
    with ExitStack() as opened:
        client, server = _images(options, name, findings, opened)
        for role, image in (("client", client), ("server", server)):
            findings.figures[f"{role} image, MB unpacked"] = round(engine.image_bytes(image) / 1e6)
        secrets = Path(tempfile.mkdtemp(prefix=f"{name}-"))  # this user's alone
        opened.callback(shutil.rmtree, secrets, ignore_errors=True)
        stack = Stack(
            name,
            {
                "RINGFENCE_CLIENT_IMAGE": client,
                "RINGFENCE_SERVER_IMAGE": server,
                "RINGFENCE_SECRETS": str(secrets),
                "BASE_IMAGE": options.base_image,
                "POSTGRES_IMAGE": options.postgres_image,
            },
        )
        write_password(secrets)
        if not options.keep:
            opened.callback(_remove, stack, findings)
        with findings.timed("keys, letters, policies"):
            set_up(stack, secrets, rounds=options.rounds, round_seconds=options.round_seconds)
        with findings.timed("attack on the walls"):
            check_walls(stack, findings)
        study = Study(stack, findings, secrets / "run.log")
        opened.callback(study.stop)
        try:
            with findings.timed("all services healthy, hospitals connected"):
                study.start_services()
            check_containment(stack, findings)
            study.carry_out()
            with findings.timed("evidence and ledgers"):
                check_results(study)
            with findings.timed("control plane"):
                check_control_plane(stack, findings)
            check_rights(stack, findings, CONTROL_SERVICES[1:])
        except (EngineFault, TimeoutError, KeyboardInterrupt):
            _show_logs(stack)
            raise
        findings.figures["memory now, MiB"] = _memory(stack)


def _images(options: argparse.Namespace, name: str, findings: Findings, opened: ExitStack) -> tuple[str, str]:
    """Build both images, or take those that are there."""
    wheels = options.base_image
    if options.wheels is not None:
        wheels = f"{name}-wheels:1"
        engine.import_wheels(options.wheels, wheels)
        opened.callback(_remove_image, wheels)
    made = []
    for role in ("client", "server"):
        image = getattr(options, f"{role}_image")
        if image is None:
            image = f"{name}-{role}:1"
            arguments = {"BASE_IMAGE": options.base_image, "WHEELS_IMAGE": wheels}
            if role == "client" and options.torch_index is not None:
                arguments["TORCH_INDEX"] = options.torch_index
            with findings.timed(f"building the {role} image"):
                engine.build(role, image, arguments, pip_conf=options.pip_conf)
            if not options.keep:
                opened.callback(_remove_image, image)
        made.append(image)
    return made[0], made[1]


def _remove(stack: Stack, findings: Findings) -> None:
    with findings.timed("removing everything"), suppress(EngineFault):
        stack.remove()


def _remove_image(image: str) -> None:
    with suppress(EngineFault):
        engine.call(["docker", "image", "rm", "--force", image])


def _show_logs(stack: Stack) -> None:
    """What the containers said last, for whoever has to find out."""
    with suppress(EngineFault):
        print(stack.compose("logs", "--no-color", "--tail", "15"), file=sys.stderr)
    with suppress(EngineFault):
        print(stack.inside("coordinator", "sh", "-c", "tail -n 15 /deployment/runs/*/*.log"), file=sys.stderr)


def _memory(stack: Stack) -> dict[str, float]:
    found = {}
    for service in (*SERVICES, *CONTROL_SERVICES):
        form = ["docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", stack.container(service)]
        figure = engine.call(form).split("/")[0].strip()
        scale = {"GiB": 1024.0, "MiB": 1.0, "KiB": 1 / 1024}
        found[service] = round(float(figure[:-3]) * scale.get(figure[-3:], 0.0))
    return found


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="docker/verify",
        description=__doc__,
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-image", default=_DEFAULT_BASE, metavar="IMAGE", help="what both images are built on")
    parser.add_argument(
        "--postgres-image", default=_DEFAULT_POSTGRES, metavar="IMAGE", help="PostgreSQL's, for the control plane"
    )
    parser.add_argument("--wheels", type=_there, metavar="DIR", help="a folder of wheels that builds install from")
    parser.add_argument("--pip-conf", type=_there, metavar="FILE", help="pip's settings for the builds, not kept")
    parser.add_argument("--torch-index", metavar="URL", help="where torch without CUDA is; empty for no such index")
    parser.add_argument("--client-image", metavar="IMAGE", help="take this one instead of building")
    parser.add_argument("--server-image", metavar="IMAGE", help="take this one instead of building")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="rounds of the study, 6 or more (8)")
    parser.add_argument("--round-seconds", type=int, default=300, metavar="N", help="how long a round may take (300)")
    parser.add_argument("--keep", action="store_true", help="leave containers, volumes and images for you to look at")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 6:  # four of them are disturbed
        parser.error("--rounds must be 6 or more")
    return options


def _there(text: str) -> Path:
    """A path that is there, whole: the commands run in another folder."""
    path = Path(text).resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {path}")
    return path
