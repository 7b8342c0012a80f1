"""Gives a SuperNode's process a relay where none is installed: the real one, once it is there, is found first."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class _LastResort(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        del path, target
        if name != "ringfence_client.relay":
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("stand_in_relay.py"))


sys.meta_path.append(_LastResort())
