"""The evidence bundle as a file: a zip archive with exactly one byte form for its contents.

Any zip program can open it, but only the bytes this module would have written are accepted: no compression, one fixed
date, sorted names, no extra fields, flags, comments or gaps. So a reader needs no lenient zip parser, nothing can hide
between the files, a small file cannot unpack into a large one, and whoever changes any byte changes the contents or is
refused.

Format: PKWARE APPNOTE 6.3.9, local file header (4.3.7), central directory (4.3.12), end record (4.3.16); version 2.0,
stored, 1980-01-01 00:00, made by Unix with mode 0644.
"""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ringfence_policy.errors import EvidenceRefused

LARGEST_BUNDLE_BYTES = 1 << 30
MOST_FILES = 20_000

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
_END = struct.Struct("<4sHHHHLLH")
_VERSION = 20
_MADE_BY = (3 << 8) | _VERSION
_EARLIEST_DATE = 0x21
_MODE = 0o100644 << 16
_PART = r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9_-])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,4}}")
_DEVICES = re.compile(r"(?:aux|con|nul|prn|com[0-9]|lpt[0-9])(?:\..*)?")  # names that Windows gives to devices


def pack(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The one byte string that holds these files, piece by piece: a large one is in memory once as it is.

    Raises:
        EvidenceRefused: A name is not a plain relative path in lower case, or there is too much.
    """
    if not files or len(files) > MOST_FILES or sum(map(len, files.values())) > LARGEST_BUNDLE_BYTES:
        raise EvidenceRefused(
            "not a bundle's worth of files",
            expected=f"1 to {MOST_FILES} files of together at most {LARGEST_BUNDLE_BYTES} bytes",
        )
    directory = []
    offset = 0
    for name in sorted(files):
        data, label = files[name], _checked_name(name)
        common = (_VERSION, 0, 0, 0, _EARLIEST_DATE, zlib.crc32(data), len(data), len(data), len(label), 0)
        local = _LOCAL.pack(b"PK\x03\x04", *common) + label
        directory.append(_CENTRAL.pack(b"PK\x01\x02", _MADE_BY, *common, 0, 0, 0, _MODE, offset) + label)
        yield local
        yield data
        offset += len(local) + len(data)
    index = b"".join(directory)
    yield index
    yield _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(index), offset, 0)


def unpack(archive: bytes) -> dict[str, bytes]:
    """The files of an archive that `pack` could have written.

    Raises:
        EvidenceRefused: Any byte is another than `pack` would write for these contents.
    """
    if len(archive) > LARGEST_BUNDLE_BYTES + (1 << 26):
        raise EvidenceRefused("the bundle is too large", expected=f"at most {LARGEST_BUNDLE_BYTES} bytes of files")
    files: dict[str, bytes] = {}
    offset = 0
    while archive[offset : offset + 4] == b"PK\x03\x04":
        if offset + _LOCAL.size > len(archive) or len(files) >= MOST_FILES:
            raise EvidenceRefused("the bundle is cut off or holds too many files", where=f"byte {offset}")
        header = _LOCAL.unpack_from(archive, offset)
        size, name_length = header[8], header[9]
        start = offset + _LOCAL.size + name_length
        if start + size > len(archive):
            raise EvidenceRefused("the bundle is cut off", where=f"byte {offset}")
        name = archive[offset + _LOCAL.size : start].decode("latin-1")
        if name in files:
            raise EvidenceRefused("the bundle holds a file twice", where=f"byte {offset}")
        files[name] = archive[start : start + size]
        offset = start + size
    if not files:
        raise EvidenceRefused(
            "not an evidence bundle", expected="a zip archive as `ringfence evidence export` writes it"
        )
    at = 0
    for piece in pack(files):
        if archive[at : at + len(piece)] != piece:
            raise _another_form(at + _first_difference(piece, archive[at : at + len(piece)]))
        at += len(piece)
    if at != len(archive):
        raise _another_form(at)
    return files


def write_bundle(path: Path, files: Mapping[str, bytes]) -> str:
    """Write a bundle so that a crash leaves the old file or the new one, and return its digest.

    Raises:
        EvidenceRefused: As `pack`.
        OSError: The file cannot be written.
    """
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            for piece in pack(files):
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return f"sha256:{digest.hexdigest()}"


def read_bundle(path: Path) -> dict[str, bytes]:
    """Read a bundle's files into memory. Nothing is written anywhere.

    Raises:
        EvidenceRefused: The file cannot be read, is too large, or is not in its one byte form.
    """
    try:
        if path.stat().st_size > LARGEST_BUNDLE_BYTES + (1 << 26):
            raise EvidenceRefused("the bundle is too large", expected=f"at most {LARGEST_BUNDLE_BYTES} bytes of files")
        archive = path.read_bytes()
    except (OSError, ValueError) as error:
        raise EvidenceRefused("the bundle cannot be read", got=type(error).__name__, where=str(path)) from None
    return unpack(archive)


def _another_form(position: int) -> EvidenceRefused:
    return EvidenceRefused(
        "the bundle is not in its one byte form",
        expected="exactly the bytes that `ringfence evidence export` writes for these files",
        got="another byte, or bytes too many or too few",
        where=f"byte {position}",
    )


def _first_difference(ours: bytes, theirs: bytes) -> int:
    same, different = 0, min(len(ours), len(theirs))
    while same < different:  # halving on slices: a loop over the bytes of a large model would take minutes
        middle = (same + different + 1) // 2
        if ours[same:middle] == theirs[same:middle]:
            same = middle
        else:
            different = middle - 1
    return same


def _checked_name(name: str) -> bytes:
    if len(name) > 500 or not _NAME.fullmatch(name) or any(map(_DEVICES.fullmatch, name.split("/"))):  # noqa: PLR2004
        raise EvidenceRefused(
            "a bundle may not hold a file of this name",
            expected="a plain relative path in lower case",
            got=repr(name[:80]),
        )
    return name.encode("ascii")
