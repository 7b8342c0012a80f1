"""Takes out of an installed environment what an image of one role never runs, and says how much that was."""

import shutil
import sys
import sysconfig
from pathlib import Path

# The other side's code and its command; a coordinator keeps the holders' package for
# its bundled plans and schemas, and for the model that a run starts from.
OTHERS = {
    "client": ("ringfence_server", "bin/ringfence"),
    "server": ("bin/ringfence-node",),
}
# What compiles or installs packages at run time, and torch's own tests.
TOOLS = ("pip", "pip-*", "bin/pip*", "bin/uv", "bin/uvx", "torch/include", "torch/share", "torch/test", "torch/bin/*")
# torch does not load without it.
KEPT = {"torch_shm_manager"}
# Packages whose tests lie inside them.
TESTED = ("numpy", "scipy", "sympy", "networkx", "matplotlib", "polars", "pandas", "mpmath", "alembic", "sqlalchemy")


def main(role: str, prefix: Path) -> None:
    """Take it out."""
    packages = Path(sysconfig.get_path("purelib"))
    before = size_of(prefix)
    for pattern in (*OTHERS[role], *TOOLS):
        base = prefix if pattern.startswith("bin/") else packages
        for found in base.glob(pattern):
            if found.name not in KEPT:
                remove(found)
    for package in TESTED:
        for found in [path for path in (packages / package).rglob("tests") if path.is_dir()]:
            remove(found)
    after = size_of(prefix)
    print(f"{before >> 20} MiB before, {after >> 20} MiB after")
    for name, size in sorted(((path.name, size_of(path)) for path in packages.iterdir()), key=lambda one: -one[1])[:12]:
        print(f"{size >> 20:6d} MiB  {name}")


def remove(path: Path) -> None:
    """Remove a file or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files beneath a directory."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
