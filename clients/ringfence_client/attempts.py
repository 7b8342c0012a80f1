"""The single ways by which `attacks.py` tries to get out of a walled process, wall by wall.

Each is a pair: words for it, and what it does. Where the kernel refuses it raises; where it gets through it says how,
and has undone what it did. Some ask for nothing sensible, to be harmless: only a wall answers those by a refusal.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ringfence_client import kernel
from ringfence_client.walls import Limits

# Numbers of Linux.
_FAMILIES: Final = {"IPv4": 2, "IPv6": 10, "Unix": 1, "netlink": 16, "packet": 17, "vsock": 40}
_STREAM, _DATAGRAM, _RAW = 1, 2, 3
_LOOPBACK_PORT_9: Final = bytes([2, 0, 0, 9, 127, 0, 0, 1, *(0,) * 8])
_CLONE_NEWUSER_AND_NONSENSE: Final = 0x10000001
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_DETACH = 0x4206, 0x4207, 17
_WAIT_FOR_THE_TRACED: Final = 0x40000000
_MAP_GROWSDOWN, _MAP_NORESERVE = 0x0100, 0x4000
_IPC_CREATE_FOR_ME: Final = 0o1600
_CAP_SYS_ADMIN: Final = 1 << 21
_SI_QUEUE_SIGNAL_0: Final = bytes([0] * 8) + (-1).to_bytes(4, "little", signed=True) + bytes(116)
_NONSENSE: Final = 9999
_MEBIBYTE: Final = 1 << 20

Attack = tuple[str, Callable[[], str]]


class Withstood(Exception):
    """A wall held, and the kernel says so otherwise than by an error."""


def _calls(function: str, *arguments: object) -> Callable[[], str]:
    """An attempt that calls into the C library."""

    def attempt() -> str:
        return f"answered {kernel.call(function, *arguments)}"

    return attempt


def _does(function: Callable[..., object], *arguments: object) -> Callable[[], str]:
    """An attempt that calls a function of Python."""

    def attempt() -> str:
        function(*arguments)
        return "done"

    return attempt


def _undo(function: Callable[..., object], *arguments: object) -> None:
    """Put back what an attempt did. That this may be refused says nothing about the attempt, which got through."""
    with contextlib.suppress(OSError):
        function(*arguments)


def _system_calls(name: str, *arguments: object) -> Callable[[], str]:
    def attempt() -> str:
        return f"answered {kernel.system_call(name, *arguments)}"

    return attempt


def on_network() -> Iterator[Attack]:
    """Ways to reach another process or machine."""
    for family, number in _FAMILIES.items():
        for kind in (_RAW,) if family in ("netlink", "packet") else (_STREAM, _DATAGRAM):
            yield f"open a socket ({family}, type {kind})", partial(_open_socket, number, kind)
    yield "open a pair of sockets", _open_pair
    yield "set up io_uring", _system_calls("io_uring_setup", 0, None)
    yield "use a socket that was open before", partial(_inherited, _is_socket, "is a socket")


def _open_socket(family: int, kind: int) -> str:
    descriptor = kernel.call("socket", family, kind, 0)
    try:
        if (family, kind) != (_FAMILIES["IPv4"], _STREAM):
            return "opened"
        try:
            kernel.call("connect", descriptor, _LOOPBACK_PORT_9, len(_LOOPBACK_PORT_9))
        except OSError as error:
            return f"opened; connecting to 127.0.0.1 gave {errno.errorcode.get(error.errno or 0)}"
        return "opened and connected to 127.0.0.1"
    finally:
        os.close(descriptor)


def _open_pair() -> str:
    pair = (ctypes.c_int * 2)()
    kernel.call("socketpair", _FAMILIES["Unix"], _STREAM, 0, pair)
    for descriptor in pair:
        os.close(descriptor)
    return "opened"


def _inherited(is_way_out: Callable[[int], bool], words: str) -> str:
    """Look at each descriptor that is open for one that leads out."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers are enough
        with contextlib.suppress(OSError):  # the listing's own, closed by now
            if is_way_out(int(name)):
                return f"descriptor {name} {words}"
    raise Withstood("there is none")


def _is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def _is_writable_file(descriptor: int) -> bool:
    may_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    return may_write and stat.S_ISREG(os.fstat(descriptor).st_mode)


def on_files(forbidden_file: Path, readable: Sequence[Path]) -> Iterator[Attack]:
    """Ways to read what is no record and no code, and to change anything."""
    for path in (forbidden_file, Path("/etc/passwd"), Path(f"/proc/{os.getppid()}/cmdline")):
        # Whether a file exists can be seen through Landlock. One that does not would tell nothing.
        if path is forbidden_file or _is_there(path):
            yield f"read {path}", partial(_read, path)
    for path in (forbidden_file.parent, Path("/")):
        yield f"list {path}", partial(_list, path)
    for path in readable:
        yield f"write to {path}", partial(_open_and_close, path, os.O_WRONLY)
        yield f"cut {path}", partial(_cut, path)
        yield (
            f"change who may read {path}",
            partial(_change_mode, path),
        )
        yield f"rename {path}", _does(path.rename, path)
    places = (Path("/tmp"), Path("/dev/shm"), forbidden_file.parent, *(path.parent for path in readable))  # noqa: S108
    for place in dict.fromkeys(place for place in places if _is_there(place)):
        yield f"make a file in {place}", partial(_make, place, is_directory=False)
        yield f"make a directory in {place}", partial(_make, place, is_directory=True)
    yield "write to a file that was open before", partial(_inherited, _is_writable_file, "is a file open for writing")
    yield "find a size to which files may grow", _find_file_size


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _cut(path: Path) -> str:
    os.truncate(path, path.stat().st_size)
    return "done"


def _change_mode(path: Path) -> str:
    path.chmod(stat.S_IMODE(path.stat().st_mode))
    return "done"


def _list(path: Path) -> str:
    return f"listed {len(os.listdir(path))} names"  # noqa: PTH208 - a count of names is enough


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)
    return "read"


def _open_and_close(path: Path, flags: int) -> str:
    os.close(os.open(path, flags | os.O_CLOEXEC))
    return "opened"


def _make(place: Path, *, is_directory: bool) -> str:
    path = place / f".ringfence-attack-{os.getpid()}"
    if is_directory:
        path.mkdir(mode=0o700)
        _undo(path.rmdir)
    else:
        _open_and_close(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        _undo(path.unlink)
    return "made"


def _find_file_size() -> str:
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size == 0:
        raise Withstood("limited to nothing")
    return "no limit of nothing"


def on_processes() -> Iterator[Attack]:
    """Ways to start a process, and to reach into one or signal it."""
    parent = os.getppid() or 1
    yield "fork", partial(_born, os.fork)
    yield "clone a process", partial(_born, partial(kernel.system_call, "clone", signal.SIGCHLD, 0, 0, 0, 0))
    yield "clone3", _system_calls("clone3", None, 0)
    yield "spawn a program", _spawn
    yield "become another program", _does(os.execve, "", ["nothing"], {})
    yield "become another program (execveat)", _system_calls("execveat", -1, b"", None, None, 0)
    yield "trace the parent", partial(_trace, parent)
    yield "read the parent's memory", partial(_read_memory, parent)
    for name in ("mem", "environ"):
        yield f"open {name} of the parent in /proc", partial(_read_hidden, Path(f"/proc/{parent}/{name}"))
    yield "signal the parent", _does(os.kill, parent, 0)
    yield "queue a signal to the parent", _system_calls("rt_sigqueueinfo", parent, 0, _SI_QUEUE_SIGNAL_0)
    yield "hold the parent by a descriptor", partial(_hold, parent)
    yield "take a descriptor of another process", _system_calls("pidfd_getfd", -1, 0, 0)


def _born(make: Callable[[], int]) -> str:
    child = make()
    if child == 0:
        os._exit(0)
    _end(child)
    return "a process was started"


def _end(child: int) -> None:
    _undo(os.kill, child, signal.SIGKILL)
    _undo(os.waitpid, child, 0)


def _spawn() -> str:
    _end(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], {}))
    return "a program was started"


def _trace(parent: int) -> str:
    kernel.system_call("ptrace", _PTRACE_SEIZE, parent, 0, 0)
    with contextlib.suppress(OSError):  # it is let go by three steps, of which none makes sense without the one before
        kernel.system_call("ptrace", _PTRACE_INTERRUPT, parent, 0, 0)
        os.waitpid(parent, _WAIT_FOR_THE_TRACED)
        kernel.system_call("ptrace", _PTRACE_DETACH, parent, 0, 0)
    return "traced"


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _read_memory(pid: int) -> str:
    room = ctypes.create_string_buffer(1)
    here = _Span(ctypes.addressof(room), 1)
    # The first page is nobody's. Whoever may read at all is told that (EFAULT), and whoever may not, that.
    there = _Span(1, 1)
    kernel.call("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return "read"


def _read_hidden(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:  # the parent exists: /proc is mounted so that it hides what may not be traced
        raise Withstood("hidden") from None


def _hold(pid: int) -> str:
    os.close(os.pidfd_open(pid))
    return "held"


def on_privileges() -> Iterator[Attack]:
    """Ways to have or get more rights than the process has."""
    yield "gain rights by starting a program", _find_new_privileges
    yield "use a capability", _find_capabilities
    yield "take a capability", _take_capability
    yield "become another user", _change_user
    yield "let others read this process's memory", _become_dumpable
    yield "make a namespace of its own", _calls("unshare", _CLONE_NEWUSER_AND_NONSENSE)
    yield "enter another namespace", _calls("setns", -1, 0)
    yield "mount", _calls("mount", b"none", b"/", b"no-such-filesystem", 0, None)
    yield "change the root directory", _does(os.chroot, "/")
    yield "load a program into the kernel", _system_calls("bpf", _NONSENSE, None, 0)
    yield "measure other processes", _system_calls("perf_event_open", None, -1, -1, -1, 0)
    yield "handle page faults", _system_calls("userfaultfd", _NONSENSE)
    yield "read keys of the kernel", _system_calls("keyctl", _NONSENSE, 0, 0, 0, 0)


def _find_new_privileges() -> str:
    if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1:
        raise Withstood("no_new_privs is set")
    return "no_new_privs is not set"


def _find_capabilities() -> str:
    held = kernel.capabilities()
    if not held.effective | held.permitted | held.inheritable:
        raise Withstood("it has none")
    return f"it has {held.permitted.bit_count()} capabilities"


def _take_capability() -> str:
    held = kernel.capabilities()
    kernel.set_capabilities(
        kernel.Capabilities(
            effective=held.effective | _CAP_SYS_ADMIN,
            permitted=held.permitted | _CAP_SYS_ADMIN,
            inheritable=held.inheritable,
        )
    )
    return "taken"


def _change_user() -> str:
    own = os.geteuid()
    # By the kernel's own call: the C library's would tell every other thread of it by a signal, which ends a process
    # behind the filter.
    kernel.system_call("setresuid", -1, _NONSENSE if own == 0 else 0, -1)
    _undo(kernel.system_call, "setresuid", -1, own, -1)
    return "changed, and changed back"


def _become_dumpable() -> str:
    before = kernel.prctl(kernel.PR_GET_DUMPABLE)
    if before != 0:
        return "they may already"
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    _undo(kernel.prctl, kernel.PR_SET_DUMPABLE, 0)
    return "allowed, and forbidden again"


def on_memory(limits: Limits) -> Iterator[Attack]:
    """Ways to have more memory than the limit says. `ringfence-node doctor` really fills it."""
    private, shared = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    yield "find no limit of memory", partial(_find_limit, resource.RLIMIT_DATA, limits.memory_bytes)
    yield "raise the limit of memory", partial(_raise_limit, resource.RLIMIT_DATA)
    yield "map more memory than the limit", partial(_map_too_much, limits.memory_bytes + _MEBIBYTE, private)
    yield "map memory that the limit does not count (shared)", partial(_map, mmap.PAGESIZE, shared)
    yield "map memory that the limit does not count (stack)", partial(_map, mmap.PAGESIZE, private | _MAP_GROWSDOWN)
    yield "stretch memory that the limit does not count", _calls("mremap", 0, 0, 0, 0)
    yield "make a file of memory", _make_file_of_memory
    yield "share memory by System V's call", _share_memory


def _find_limit(kind: int, most: int | None = None) -> str:
    soft, _ = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY:
        return "no limit"
    if most is not None and soft > most:
        return f"limited to {soft} only"
    raise Withstood(f"limited to {soft}")


class _Pair(ctypes.Structure):
    _fields_ = (("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong))


def _raise_limit(kind: int) -> str:
    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY:
        return "there is none"
    wanted = hard if hard == resource.RLIM_INFINITY or hard > soft else resource.RLIM_INFINITY
    # By the C library: Python turns a refusal into an error without a number.
    kernel.call("setrlimit", kind, ctypes.byref(_Pair(wanted % 2**64, wanted % 2**64)))
    _undo(kernel.call, "setrlimit", kind, ctypes.byref(_Pair(soft % 2**64, hard % 2**64)))
    return "raised, and lowered again"


def _map(size: int, flags: int) -> str:
    mmap.mmap(-1, size, flags=flags).close()
    return "mapped"


def _map_too_much(size: int, flags: int) -> str:
    try:
        return _map(size, flags | _MAP_NORESERVE)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise Withstood("ENOMEM") from None
        raise


def _make_file_of_memory() -> str:
    os.close(os.memfd_create("ringfence-attack"))
    return "made"


def _share_memory() -> str:
    _undo(kernel.call, "shmctl", kernel.call("shmget", 0, mmap.PAGESIZE, _IPC_CREATE_FOR_ME), 0, None)
    return "shared"


def on_cpu() -> Iterator[Attack]:
    """Ways to compute for longer than allowed. `ringfence-node doctor` really spins."""
    yield "find no limit of processor time", partial(_find_limit, resource.RLIMIT_CPU)
    yield "raise the limit of processor time", partial(_raise_limit, resource.RLIMIT_CPU)
    yield "ignore the signal that ends it", _ignore_signal
    yield "block the signal that ends it", _block_signal


def _ignore_signal() -> str:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    _undo(signal.signal, signal.SIGXCPU, signal.SIG_DFL)
    return "ignored, and no longer"


def _block_signal() -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
    # The filter answers yes and does nothing, so ask the kernel what is blocked.
    blocked = (ctypes.c_uint64 * 16)()
    kernel.call("sigprocmask", 0, None, blocked)
    if not blocked[0] >> (signal.SIGXCPU - 1) & 1:
        raise Withstood("told yes, and not done")
    _undo(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGXCPU})
    return "blocked, and no longer"
