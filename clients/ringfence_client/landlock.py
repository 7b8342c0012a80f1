"""The door to Landlock, by which a Linux process gives up files, TCP and signals for good, without any privilege.

Each kernel knows some of the rights below. Every right that the running kernel knows is taken away, and given back
beneath the paths that are named; a right that it does not know yet cannot be taken away by it.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path
from typing import Final

from ringfence_client import kernel

_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
# The newest of Landlock's versions of which this module knows every right. It asks a newer kernel for no more.
NEWEST_ABI: Final = 7


class FileRight(IntFlag):
    """What Landlock can forbid on files, with the numbers of the kernel."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_SINCE_ABI: Final = {FileRight.REFER: 2, FileRight.TRUNCATE: 3, FileRight.IOCTL_DEV: 5}
# A rule that names a file may speak of these alone: any other right makes the kernel refuse the whole rule.
_RIGHTS_OF_A_FILE: Final = (
    FileRight.EXECUTE | FileRight.WRITE_FILE | FileRight.READ_FILE | FileRight.TRUNCATE | FileRight.IOCTL_DEV
)
READ: Final = FileRight.READ_FILE | FileRight.READ_DIR
RUN: Final = READ | FileRight.EXECUTE
# Devices are neither made nor driven by anything here, not even where everything else may be written.
CHANGE: Final = (
    READ
    | FileRight.WRITE_FILE
    | FileRight.TRUNCATE
    | FileRight.REMOVE_DIR
    | FileRight.REMOVE_FILE
    | FileRight.MAKE_DIR
    | FileRight.MAKE_REG
    | FileRight.MAKE_SOCK
    | FileRight.MAKE_FIFO
    | FileRight.MAKE_SYM
    | FileRight.REFER
)

# The kernel forgets a file of /proc when it is short of memory, and the rule with it, unless somebody keeps it open.
# The entry for the whole of /proc itself is never forgotten.
_PROC: Final = Path("/proc")
_kept_open: list[int] = []

_TCP: Final = 0b11  # bind and connect
_TCP_SINCE_ABI: Final = 4
_SCOPES: Final = 0b11  # abstract Unix sockets and signals
_SCOPES_SINCE_ABI: Final = 6


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi_version() -> int:
    """Which version of Landlock the running kernel speaks; 0 where there is none, or where it is switched off."""
    try:
        return kernel.system_call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def file_rights(abi: int) -> FileRight:
    """Every right on files that this version of Landlock can take away."""
    known = FileRight(0)
    for right in FileRight:
        if abi >= _SINCE_ABI.get(right, 1):
            known |= right
    return known


def restrict(
    *,
    readable: Iterable[Path],
    runnable: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    allows_tcp: bool = False,
) -> int:
    """Take everything from this thread and its descendants but what is named; nothing gives it back.

    Needs `no_new_privs`. Other threads that run already keep their rights, so call it while there is only one.
    Signals and abstract Unix sockets reach processes behind the same wall only, where the kernel can see to it.

    Args:
        readable: Files and directories that may be read, and all beneath them. What does not exist, or cannot be
            reached, is passed over: it cannot be read then and cannot be read later.
        runnable: The same, and programs there may be started.
        writable: The same as `readable`, and files there may be made, changed and removed.
        allows_tcp: Whether TCP stays as it is.

    Returns:
        The version of Landlock whose rights were taken away: which, says the table in docs/sandbox.md.

    Raises:
        OSError: The kernel has no Landlock (ENOSYS, EOPNOTSUPP) or refuses. Nothing was taken away then.
    """
    abi = min(abi_version(), NEWEST_ABI)
    if abi < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    handled = file_rights(abi)
    attributes = _RulesetAttributes(
        handled_access_fs=handled,
        handled_access_net=_TCP if abi >= _TCP_SINCE_ABI and not allows_tcp else 0,
        scoped=_SCOPES if abi >= _SCOPES_SINCE_ABI else 0,
    )
    # A kernel takes a structure longer than its own as long as what it does not know is zero, which it is here.
    ruleset = kernel.system_call("landlock_create_ruleset", ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    try:
        for paths, rights in ((readable, READ), (runnable, RUN), (writable, CHANGE)):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        kernel.system_call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: Path, rights: FileRight) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _RIGHTS_OF_A_FILE
        rule = _PathBeneath(allowed_access=rights, parent_fd=place)
        kernel.system_call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        if path.is_relative_to(_PROC):
            _kept_open.append(place)
        else:
            os.close(place)
