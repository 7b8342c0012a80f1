"""Processes for tests of the walls: Python code that runs in a child, behind walls or about to build them."""

import json
import os
import subprocess
import sys
import textwrap

# A filter of its own hides a part of the kernel from whatever is started, as an older kernel would.
WITHOUT = """
import errno, os, sys
import pyseccomp as p
made = p.SyscallFilter(p.ALLOW)
for name in {hidden!r}:
    made.add_rule(p.ERRNO(errno.ENOSYS), name)
if "seccomp" in {hidden!r}:
    made.add_rule(p.ERRNO(errno.EINVAL), "prctl", p.Arg(0, p.EQ, 22))
made.load()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NO_LANDLOCK = ("landlock_create_ruleset",)
NO_SECCOMP = ("seccomp",)


def python(*arguments, place, hidden=(), **options):
    """Run Python with these arguments in an empty place, and wait for its end."""
    start = ["-P", "-c", WITHOUT.format(hidden=hidden)] if hidden else []
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def told(code, *arguments, place, **options):
    """Run code that tells one thing by `tell(...)`, as JSON, and give that back."""
    prelude = "import json, os, sys\ndef tell(it): os.write(1, json.dumps(it).encode())\n"
    ended = python("-P", "-c", prelude + textwrap.dedent(code), *map(str, arguments), place=place, **options)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    return json.loads(ended.stdout)


def holder_in(directory):
    """A directory like a holder's: a key, which must stay out of reach, and records."""
    (directory / "key").write_text("secret", encoding="utf-8")
    (directory / "data.csv").write_text("age,ill\n54,1\n", encoding="utf-8")
    (directory / "grows").touch()
    return directory


def is_root():
    return os.geteuid() == 0
