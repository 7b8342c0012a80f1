"""Where a benchmark's numbers were taken: machine, versions and command, as every script says them."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


def environment(*packages: str, **more: str) -> dict[str, str]:
    """The machine and how busy it is, Python, the packages that matter, what the script adds, and the command."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **more,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }
