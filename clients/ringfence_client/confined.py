"""`python -m ringfence_client.confined`: start a program behind files-only walls, for those that talk to a network.

The SuperNode and whatever it starts run code that came over the wire. Behind these walls they keep their network and
reach the named files only: not a holder's directory, its records, keys or ledger, nor, by `ptrace` or /proc, the memory
of the agent. A Unix socket with a name can be connected to, wherever it lies. Without Landlock nothing is started.
"""

import argparse
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from ringfence_client import kernel, landlock
from ringfence_client.walls import code_paths, drop_privileges
from ringfence_policy.errors import Fault, RingfenceError

# What a program reads of the system's settings to find machines by name, to trust certificates and to know its user.
_NETWORK_SETTINGS: Final = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/run/systemd/resolve",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/passwd",
    "/etc/group",
)
_FIRST_BESIDES_THE_TERMINAL: Final = 3
_MANY_FILES: Final = 1 << 20


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Read the command line, build the walls, and become the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, command = _parsed(given)
    try:
        start_confined(command, readable=options.read, writable=options.write)
    except RingfenceError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None


def start_confined(command: Sequence[str], *, readable: Sequence[Path], writable: Sequence[Path]) -> NoReturn:
    """Become a program that reaches these files and no others.

    Args:
        command: The program and its arguments. It must lie beneath `readable`, or be part of this installation.
        readable: What may be read besides interpreter, libraries and settings of the network; programs there may run.
        writable: What may be read and changed.

    Raises:
        Fault: There is no Landlock here, or the program cannot be started. This process has given up its rights then.
    """
    if not kernel.IS_LINUX or landlock.abi_version() == 0:
        raise Fault(
            "the program is not started: no wall can be built around it",
            expected="Linux 5.13 or newer with Landlock switched on",
            got=f"{sys.platform} without Landlock",
            where=command[0],
            next_step="look for landlock in /sys/kernel/security/lsm, and add it to the kernel's lsm= option",
        )
    _close_all_but_the_terminal()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    drop_privileges()
    try:
        landlock.restrict(
            readable=[Path(name) for name in _NETWORK_SETTINGS],
            runnable=[*code_paths(), *readable],
            writable=[*writable, Path("/dev/null")],
            allows_tcp=True,
        )
    except OSError as error:
        raise Fault("the wall could not be built", got=str(error), where=command[0]) from None
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and a program it starts would too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise Fault(
            "the program could not be started",
            expected="a program beneath a --read path or in this Python's environment",
            got=error.strerror or type(error).__name__,
            where=command[0],
        ) from None


def _parsed(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m ringfence_client.confined",
        usage="%(prog)s [--read PATH...] [--write PATH...] -- COMMAND...",
        description="Start COMMAND so that it reaches the files beneath these paths and no others.",
    )
    parser.add_argument("--read", nargs="+", action="extend", default=[], type=Path, metavar="PATH")
    parser.add_argument("--write", nargs="+", action="extend", default=[], type=Path, metavar="PATH")
    cut = given.index("--") if "--" in given else len(given)
    options, command = parser.parse_args(given[:cut]), given[cut + 1 :]
    if not command:
        parser.error("expected -- and a command after the paths")
    missing = [str(path) for path in (*options.read, *options.write) if not path.exists()]
    if missing:
        parser.error(f"no such file or directory: {', '.join(missing)}")
    return options, command


def _close_all_but_the_terminal() -> None:
    """Close what was left open: a descriptor of the ledger or of a key would lead past the wall."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(_FIRST_BESIDES_THE_TERMINAL, _MANY_FILES if most == resource.RLIM_INFINITY else most)


if __name__ == "__main__":
    main()
