"""The door to those calls of the Linux kernel for which Python has no function of its own.

Every other module says by name what it wants. A refusal is an `OSError` with the kernel's own number, whatever was
called. What cannot be called at all, elsewhere than on Linux or on a processor whose numbers are not known here, is
ENOTSUP: that is no answer of a kernel, and no attack takes it for one.
"""

import ctypes
import errno
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from typing import Final

IS_LINUX: Final = sys.platform == "linux"

# What prctl(2) takes.
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_GET_NAME: Final = 16
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SET_VMA: Final = 0x53564D41

# capabilities(7): the third layout of capget and capset, which has two words of 32 bits for each set.
_CAPABILITY_VERSION_3: Final = 0x20080522
_WORD: Final = 0xFFFFFFFF

# System calls that have other numbers on other processors; those from 424 on are numbered alike everywhere.
_NUMBERS: Final = {
    "x86_64": {
        "ptrace": 101,
        "setresuid": 117,
        "clone": 56,
        "keyctl": 250,
        "perf_event_open": 298,
        "bpf": 321,
        "execveat": 322,
        "userfaultfd": 323,
        "rt_sigqueueinfo": 129,
    },
    "aarch64": {
        "ptrace": 117,
        "setresuid": 147,
        "clone": 220,
        "keyctl": 219,
        "perf_event_open": 241,
        "bpf": 280,
        "execveat": 281,
        "userfaultfd": 282,
        "rt_sigqueueinfo": 138,
    },
}
_EVERYWHERE: Final = {
    "io_uring_setup": 425,
    "clone3": 435,
    "pidfd_getfd": 438,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


@dataclass(frozen=True)
class Capabilities:
    """A process's three sets of capabilities, each as a number with one bit for each capability."""

    effective: int
    permitted: int
    inheritable: int


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library that answers -1 and sets errno where it is refused.

    Args:
        function: Its name, such as `unshare`.
        arguments: Integers, bytes, None, or ctypes values.

    Raises:
        OSError: The kernel refused, or there is no such function here (ENOTSUP).
    """
    try:
        entry = getattr(_libc(), function) if IS_LINUX else None
    except AttributeError:
        entry = None
    if entry is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    entry.restype = ctypes.c_long if function == "syscall" else ctypes.c_int
    ctypes.set_errno(0)
    answer = int(entry(*(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)))
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def system_call(name: str, *arguments: object) -> int:
    """Make a system call that the C library has no function for.

    Raises:
        OSError: The kernel refused, or the call's number is not known for this processor (ENOTSUP).
    """
    number = _EVERYWHERE.get(name) or _NUMBERS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return call("syscall", number, *arguments)


def prctl(option: int, value: int = 0) -> int:
    """Ask or change an attribute of this process.

    Raises:
        OSError: The kernel refused.
    """
    return call("prctl", option, value, 0, 0, 0)


def capabilities() -> Capabilities:
    """The capabilities of this process.

    Raises:
        OSError: The kernel refused.
    """
    sets = (_Sets * 2)()
    call("capget", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), ctypes.byref(sets))
    low, high = sets
    return Capabilities(
        effective=low.effective | high.effective << 32,
        permitted=low.permitted | high.permitted << 32,
        inheritable=low.inheritable | high.inheritable << 32,
    )


def set_capabilities(wanted: Capabilities) -> None:
    """Give this process these capabilities, which it may only make fewer.

    Raises:
        OSError: The kernel refused.
    """
    sets = (_Sets * 2)()
    for place, shift in enumerate((0, 32)):
        sets[place] = _Sets(
            wanted.effective >> shift & _WORD, wanted.permitted >> shift & _WORD, wanted.inheritable >> shift & _WORD
        )
    call("capset", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), ctypes.byref(sets))
