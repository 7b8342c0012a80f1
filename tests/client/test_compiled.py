"""A compiled library is used only where it fits, and what is compiled is what its digest names."""

import importlib.util
import re
import shutil
from pathlib import Path

from ringfence_client import compiled
from ringfence_client.compiled import LIBRARY, SOURCES, load_library, source_digest

HERE = Path(compiled.__file__).parent


def test_no_library_an_unreadable_one_or_one_of_other_source_is_not_loaded(tmp_path):
    for name in SOURCES:
        shutil.copy(HERE / name, tmp_path)
    assert load_library(tmp_path) is None
    (tmp_path / LIBRARY).write_bytes(b"not a library")
    assert load_library(tmp_path) is None
    if load_library() is not None:
        shutil.copy(HERE / LIBRARY, tmp_path / "copied.so")
        (tmp_path / "copied.so").replace(tmp_path / LIBRARY)
        assert load_library(tmp_path) is not None
        (tmp_path / SOURCES[0]).write_text("/* newer */\n")
        assert load_library(tmp_path) is None


def test_the_source_is_named_by_all_its_files(tmp_path):
    for name in SOURCES:
        (tmp_path / name).write_text("a")
    first = source_digest(tmp_path)
    (tmp_path / SOURCES[1]).write_text("b")
    assert source_digest(tmp_path) != first


def test_the_digest_covers_every_c_file_and_the_build_compiles_the_same_ones():
    assert {path.name for path in HERE.glob("*.[ch]")} == set(SOURCES)
    spec = importlib.util.spec_from_file_location("build_kernel", HERE.parent / "build_kernel.py")
    build_kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_kernel)
    assert build_kernel.SOURCES == SOURCES
    assert build_kernel.LIBRARY.name == LIBRARY


def test_what_a_file_includes_is_named_too():
    for name in SOURCES:
        included = re.findall(r'#include "(.*)"', (HERE / name).read_text())
        assert set(included) <= set(SOURCES)
