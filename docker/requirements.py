"""Prints what one role of Ringfence needs, as pyproject.toml says it: an image's build installs it before Ringfence."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
role = sys.argv[1]
print("\n".join([*project["dependencies"], *project["optional-dependencies"][role]]))
