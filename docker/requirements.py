"""Prints what roles of Ringfence need, as pyproject.toml says it: an image's build installs it before Ringfence."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
needed = [one for role in sys.argv[1:] for one in project["optional-dependencies"][role]]
print("\n".join([*project["dependencies"], *(one for one in needed if not one.startswith("ringfence["))]))
