"""The product's source, parsed once: what these tests read is the code as it stands, not as it was imported."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "ringfence_policy": ROOT / "sandbox_policies/ringfence_policy",
    "ringfence_client": ROOT / "clients/ringfence_client",
    "ringfence_server": ROOT / "server/ringfence_server",
}


@dataclass(frozen=True)
class Source:
    """One module of the product."""

    package: str
    path: Path

    @cached_property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @property
    def name(self):
        """The dotted name, e.g. ringfence_policy.gate."""
        parts = self.path.relative_to(PACKAGES[self.package].parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self):
        """Every module named by an import statement anywhere in the file, as (dotted name, line)."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append((node.module or "", node.lineno))
                found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        return found

    @cached_property
    def prose(self):
        """The ids of the string nodes that stand alone as statements, which is what docstrings are."""
        return {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}

    def at(self, line):
        return f"{self.path.relative_to(ROOT)}:{line}"


@pytest.fixture(scope="session")
def sources():
    """Every module of the three packages but generated ones, which test_protos.py holds to their source."""
    found = [
        Source(package, path)
        for package, place in PACKAGES.items()
        for path in sorted(place.rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]
    assert len(found) > 90, "the packages moved: mend PACKAGES in tests/architecture/conftest.py"
    return found


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT
