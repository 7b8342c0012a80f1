"""The walls that a trainer builds around itself before it meets a plan's code, and cannot take down.

What each is made of and what each platform gives stands in docs/sandbox.md. Whether they stand is for `attacks.py` to
find out: a wall that this kernel cannot build is left out here without a word, and the attack gets through.
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from time import clock_gettime, process_time
from typing import Final

from ringfence_client import kernel, landlock
from ringfence_policy.errors import Fault

_PACKAGES: Final = ("ringfence_client", "ringfence_policy")
# What the libraries of an operating system need of it. Of /etc, nothing but what loads libraries and tells the time.
_SYSTEM: Final = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies",
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
# What the main thread's stack may grow to, which RLIMIT_DATA does not count and the filter cannot refuse.
_STACK_BYTES: Final = 64 << 20
_LAST_CAPABILITY: Final = 63
# securebits(7): root is a user like any other, what is lost stays lost, and each of it is locked.
_SECUREBITS: Final = 0b11101111


class Wall(StrEnum):
    """What a wall keeps in."""

    NETWORK = "network"
    FILES = "files"
    PROCESSES = "processes"
    PRIVILEGES = "privileges"
    MEMORY = "memory"
    CPU = "cpu"


ALL_WALLS: Final = frozenset(Wall)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a walled process may use.

    Attributes:
        memory_bytes: Private memory that can be written to, stacks of threads included; docs/sandbox.md has figures.
        cpu_seconds: Processor time of all threads together, until the first `allow_cpu`.
        open_files: Descriptors at one time.
    """

    memory_bytes: int
    cpu_seconds: int
    open_files: int = 256


def raise_walls(*, readable: Sequence[Path], limits: Limits) -> None:
    """Build every wall that this machine can build around this process, for good.

    Afterwards the process computes on what it may read and on the descriptors it has: hand it pipes, and no socket or
    file that it could write to, since what is open stays open. Whatever signal it gets ends it or is ignored.

    Args:
        readable: What may be read besides `code_paths()`: the records.
        limits: How much it may use.

    Raises:
        Fault: More than one thread is running, of which the walls would hold one.
    """
    if not kernel.IS_LINUX:
        _set_limits(limits)
        return
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - a count of names is enough
        raise Fault(
            "the walls cannot be built in a process with several threads",
            expected="one thread",
            where="raise_walls",
            next_step="raise the walls before torch, polars or numpy compute anything",
        )
    refuse_calls = _prepared_filter()
    # Before it loads some of its parts torch makes sure of a directory for code that it might compile. It gets one that
    # exists, and that nothing can be written to.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix
    paths = (*code_paths(), *readable)
    _set_limits(limits)
    drop_privileges()
    _confine_files(paths)
    refuse_calls()


def allow_cpu(pid: int, seconds: float) -> None:
    """Give a walled process so much more processor time, counted from now; when it is used up, the kernel ends it.

    For whoever started the process: it cannot do so itself. Does nothing where one process cannot limit another
    (macOS): no wall stands there that this would be a part of.

    Args:
        pid: The process, of the same user.
        seconds: Time of all its threads together, rounded up to a whole second.

    Raises:
        OSError: The process is gone, or belongs to somebody else.
    """
    if sys.platform != "linux":
        return
    # The clock that the limit is measured by: of a whole process, by its number, as clock_getcpuclockid(3) makes it.
    used = clock_gettime((~pid << 3) | 2)
    _, ceiling = resource.prlimit(pid, resource.RLIMIT_CPU)
    wanted = ceil(used + seconds)
    soft = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
    resource.prlimit(pid, resource.RLIMIT_CPU, (soft, ceiling))


def code_paths() -> tuple[Path, ...]:
    """What a Python process of this installation must read to run: interpreter, libraries, packages, and no data.

    What is importable is readable, so that a data holder's own model module is found: every entry of `sys.path` is
    among these but the current directory and what contains it. Never keep records in a directory of code.
    """
    places = [Path(name) for name in (sys.prefix, sys.base_prefix, *_SYSTEM)]
    for name in _PACKAGES:
        spec = find_spec(name)
        places += [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    places += _importable()
    places.append(Path("/proc") / str(os.getpid()))
    return tuple(dict.fromkeys(place.resolve() for place in places if _is_there(place)))


def _importable() -> Iterator[Path]:
    here = Path(os.path.realpath(os.curdir))
    for entry in filter(None, sys.path):
        place = Path(entry).resolve()
        if not here.is_relative_to(place):
            yield place


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # it lies where this user may not look
        return False


def _set_limits(limits: Limits) -> None:
    """Lower the limits of this process. None of them is raised, wherever it stood."""
    soft_stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = _STACK_BYTES if soft_stack == resource.RLIM_INFINITY else min(soft_stack, _STACK_BYTES)
    for kind, wanted in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_STACK, stack),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, ceiling = resource.getrlimit(kind)
        lowered = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (lowered, lowered))
    # The ceiling stays where it is: an agent without privileges could not lift it again for the next job.
    _, ceiling = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = ceil(process_time() + limits.cpu_seconds)
    soft = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, ceiling))


def drop_privileges() -> None:
    """Give up what root has beyond others, every way to get it back, and every handler of a signal."""
    _set_signals_to_their_defaults()
    for capability in range(_LAST_CAPABILITY + 1):
        with contextlib.suppress(OSError):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    for option, value in (
        (kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL),
        (kernel.PR_SET_SECUREBITS, _SECUREBITS),
        (kernel.PR_SET_NO_NEW_PRIVS, 1),
        (kernel.PR_SET_DUMPABLE, 0),
    ):
        with contextlib.suppress(OSError):
            kernel.prctl(option, value)
    with contextlib.suppress(OSError):
        kernel.set_capabilities(kernel.Capabilities(effective=0, permitted=0, inheritable=0))


def _set_signals_to_their_defaults() -> None:
    """Leave no signal blocked and none handled: behind the filter a handler could not return."""
    for number in signal.valid_signals():
        if number == signal.SIGXCPU or signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _confine_files(paths: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):
        landlock.restrict(readable=paths)


def _prepared_filter() -> Callable[[], None]:
    """Load libseccomp while that is still possible: Python finds a library by starting a program."""
    try:
        from ringfence_client.syscall_filter import refuse_all_but_computing  # noqa: PLC0415 - not on every platform
    except (ImportError, RuntimeError):  # no pyseccomp here, or no libseccomp for it
        return lambda: None

    def refuse_calls() -> None:
        with contextlib.suppress(OSError):
            refuse_all_but_computing()

    return refuse_calls
