"""The door to seccomp: which system calls a walled trainer may make, all others being refused with EPERM.

The list holds what Python, numpy, polars, torch and Opacus need to compute, with threads, on files that are read and on
pipes that are there already. A call that is not in it is refused, so that one which a later kernel adds is refused too.
Names that a processor does not have (`open` on 64-bit ARM) are passed over. `ringfence-node doctor` tries what must not
pass; tests/client/test_walled_training.py trains with every trainer behind it.
"""

import errno
import fcntl
import mmap
import os
import signal
import termios
from typing import Final

import pyseccomp
from pyseccomp import ALLOW, EQ, ERRNO, MASKED_EQ, NE, Arg

from ringfence_client import kernel

# Allowed whatever the arguments: none of them opens a way out of the process, changes a file, or raises a limit.
_ALWAYS: Final = """
    read readv pread64 preadv write writev pwrite64 pwritev lseek close close_range dup dup2 dup3 pipe pipe2
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink readlinkat getdents getdents64
    getcwd fadvise64
    brk mprotect munmap madvise mincore membarrier get_mempolicy
    futex set_robust_list set_tid_address rseq sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min getpriority getcpu arch_prctl
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times
    getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid capget
    getrlimit getrusage uname sysinfo getrandom
    sigaltstack restart_syscall exit exit_group
"""

_O_ACCMODE: Final = 3
_O_TMPFILE: Final = 0o20000000  # the bit alone: os.O_TMPFILE holds O_DIRECTORY too, which harms nothing
_CHANGES_FILES: Final = _O_ACCMODE | os.O_CREAT | os.O_TRUNC | _O_TMPFILE

_CLONE_THREAD: Final = 0x00010000
_CLONE3: Final = 435  # by its number, the same everywhere: an old libseccomp does not know the name
_CLONE_NEW: Final = 0x7E020080  # every namespace of clone(2)

_MAP_TYPE: Final = 0x0F
_MAP_GROWSDOWN: Final = 0x0100

_FCNTL: Final = (
    fcntl.F_DUPFD,
    fcntl.F_DUPFD_CLOEXEC,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
)
_IOCTL: Final = (termios.TCGETS, termios.TIOCGWINSZ, termios.FIONREAD, termios.FIOCLEX, termios.FIONCLEX)
_PRCTL: Final = (
    kernel.PR_GET_DUMPABLE,
    kernel.PR_SET_NAME,
    kernel.PR_GET_NAME,
    kernel.PR_CAPBSET_READ,
    kernel.PR_GET_NO_NEW_PRIVS,
    kernel.PR_SET_VMA,
)


def _rules(pid: int) -> list[tuple[str, tuple[Arg, ...]]]:
    """What is allowed with some arguments only, as the call and what its arguments must be."""
    return [
        # Files are opened to be read. Landlock says which.
        ("open", (Arg(1, MASKED_EQ, _CHANGES_FILES, os.O_RDONLY),)),
        ("openat", (Arg(2, MASKED_EQ, _CHANGES_FILES, os.O_RDONLY),)),
        # Threads and no processes. The C library turns to clone when clone3, whose flags lie in memory, is not there.
        ("clone", (Arg(0, MASKED_EQ, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD),)),
        # RLIMIT_DATA counts private memory; memory that is shared without a file, or grows as a stack, it does not.
        ("mmap", (Arg(3, MASKED_EQ, _MAP_TYPE | _MAP_GROWSDOWN, mmap.MAP_PRIVATE),)),
        ("mmap", (Arg(3, MASKED_EQ, mmap.MAP_ANONYMOUS | _MAP_GROWSDOWN, 0),)),
        # Signals to this process alone: abort() needs one.
        ("kill", (Arg(0, EQ, pid),)),
        ("tgkill", (Arg(0, EQ, pid),)),
        # Handlers and masks may be asked for and not changed. Whoever could would ignore SIGXCPU, by which the kernel
        # ends a process whose processor time is spent; and rt_sigreturn is missing, since a forged one sets the mask.
        ("rt_sigaction", (Arg(1, EQ, 0),)),
        ("rt_sigprocmask", (Arg(1, EQ, 0),)),
        # Limits may be read and not set.
        ("prlimit64", (Arg(0, EQ, 0), Arg(2, EQ, 0))),
        ("prlimit64", (Arg(0, EQ, pid), Arg(2, EQ, 0))),
        *(("fcntl", (Arg(1, EQ, command),)) for command in _FCNTL),
        *(("ioctl", (Arg(1, EQ, request),)) for request in _IOCTL),
        *(("prctl", (Arg(0, EQ, option),)) for option in _PRCTL),
    ]


def refuse_all_but_computing() -> None:
    """Put the filter over this process, for good.

    Needs `no_new_privs`. Signals must be at their defaults or ignored: a handler could not return.

    Raises:
        OSError: The kernel has no seccomp filters, or refuses this one.
    """
    refused = ERRNO(errno.EPERM)
    made = pyseccomp.SyscallFilter(refused)
    # A call by the rules of another processor mode (32-bit, x32) is refused too, and ends nothing.
    made.set_attr(pyseccomp.Attr.ACT_BADARCH, refused)
    made.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    for name in _ALWAYS.split():
        _add(made, ALLOW, name)
    for name, arguments in _rules(os.getpid()):
        _add(made, ALLOW, name, *arguments)
    made.add_rule(ERRNO(errno.ENOSYS), _CLONE3)
    # Allocators block signals around the start of a thread, and Polars minds the interrupt key while it works. Both
    # give up where they may not, so they are told that it was done, and nothing is done.
    _add(made, ERRNO(0), "rt_sigprocmask", Arg(1, NE, 0))
    _add(made, ERRNO(0), "rt_sigaction", Arg(0, EQ, signal.SIGINT), Arg(1, NE, 0))
    made.load()


def _add(made: pyseccomp.SyscallFilter, action: int, name: str, *arguments: Arg) -> None:
    # Below zero: this processor has no such call, or this libseccomp is older than it.
    if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
        made.add_rule(action, name, *arguments)
