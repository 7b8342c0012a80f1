"""Compiles the cohort trainer's kernel and the noise's transform when Ringfence is installed or its wheel is built.

A hook of hatchling, named in pyproject.toml. That there is no compiler, or that it fails, is not an error: the wheel is
then pure Python, and torch computes.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE: Final = Path(__file__).parent / "ringfence_client"
SOURCES: Final = ("cohort_kernel.c", "normals.c", "cohort_kernel_steps.h", "instruction_sets.h")
# No ending of its own platform: Python would take it for a module of its own.
LIBRARY: Final = PACKAGE / "compiled.native"
# No -ffast-math: what is not a number must stay recognisable. No -march=native: the source chooses at run time.
# A square root of a negative number need not set errno: nobody reads it, and loops with one are vectorised then.
FLAGS: Final = ("-O3", "-std=gnu11", "-fno-math-errno", "-fPIC", "-shared")


class CustomBuildHook(BuildHookInterface[Any]):
    """Builds the kernel before a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the built kernel to the wheel, and say for which platform it then is."""
        del version
        if compile_kernel():
            build_data["artifacts"].append(f"clients/{PACKAGE.name}/{LIBRARY.name}")
            build_data["pure_python"] = False
            # The kernel is loaded by ctypes and knows nothing of Python: one wheel serves all versions.
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
        else:
            self.app.display_warning(
                "Nothing was compiled: the cohort trainer and the noise will be computed by torch, more slowly."
            )


def compile_kernel() -> bool:
    """Compile the kernel beside its source. Whether that worked."""
    LIBRARY.unlink(missing_ok=True)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return False
    digest = hashlib.sha256(b"\0".join((PACKAGE / name).read_bytes() for name in SOURCES)).hexdigest()
    sources = [str(PACKAGE / name) for name in SOURCES if name.endswith(".c")]
    command = [*compiler, *FLAGS, f'-DRINGFENCE_SOURCE="{digest}"', *sources, "-o", str(LIBRARY), "-lm"]
    built = subprocess.run(command, check=False, capture_output=True, timeout=300)  # noqa: S603 - the installer's own compiler
    return built.returncode == 0 and LIBRARY.is_file()
