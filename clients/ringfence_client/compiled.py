"""The library compiled from Ringfence's C files when it was installed, where that worked and the library fits."""

import ctypes
import hashlib
from pathlib import Path
from typing import Final

# What is compiled, and what that includes. clients/build_kernel.py has the same names.
SOURCES: Final = ("cohort_kernel.c", "normals.c", "cohort_kernel_steps.h", "instruction_sets.h")
LIBRARY: Final = "compiled.native"


def source_digest(directory: Path) -> str:
    """Name the library's source, as the library that was built from it does."""
    return hashlib.sha256(b"\0".join((directory / name).read_bytes() for name in SOURCES)).hexdigest()


def load_library(directory: Path = Path(__file__).parent) -> ctypes.CDLL | None:
    """Load the built library, if it is there, fits this machine and was built from the source that lies beside it."""
    try:
        library = ctypes.CDLL(str(directory / LIBRARY))
        built_from = ctypes.c_char_p.in_dll(library, "ringfence_source").value
    except (OSError, ValueError):
        return None
    return library if built_from == source_digest(directory).encode() else None
