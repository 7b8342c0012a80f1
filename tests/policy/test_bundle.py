"""The bundle file: one byte form, readable by any zip program, and nothing else is read."""

import io
import random
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence_policy import bundle, canonical
from ringfence_policy.bundle import pack, read_bundle, unpack, write_bundle
from ringfence_policy.errors import EvidenceRefused

FILES = {"manifest.jws": b"a.b.c", "holders/cleveland/log.jsonl": b'{"v":1}\n', "model.safetensors": bytes(range(256))}
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(/[a-z][a-z0-9]{0,8}){0,2}", fullmatch=True)


def packed(files):
    return b"".join(pack(files))


def foreign(files, compression):
    """An archive of the same files by another zip program."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], compression)
    return stream.getvalue()


@given(st.dictionaries(NAMES, st.binary(max_size=40), min_size=1, max_size=6))
def test_packing_and_unpacking_are_inverse_and_order_does_not_matter(files):
    archive = packed(files)
    assert unpack(archive) == files
    assert packed(dict(reversed(files.items()))) == archive


def test_any_zip_program_can_open_a_bundle():
    with zipfile.ZipFile(io.BytesIO(packed(FILES))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
        assert archive.infolist()[0].external_attr >> 16 == 0o100644


def test_every_byte_changed_is_refused_or_changes_the_contents():
    archive = packed(FILES)
    for place in range(len(archive)):
        for change in (1, 0x20, 0x80, 0xFF):
            changed = bytearray(archive)
            changed[place] ^= change
            with pytest.raises(EvidenceRefused):
                unpack(bytes(changed))


def test_every_cut_and_every_tail_is_refused():
    archive = packed(FILES)
    for cut in range(len(archive)):
        with pytest.raises(EvidenceRefused):
            unpack(archive[:cut])
    for tail in (b"\0", b"PK", archive, b"PK\x05\x06" + bytes(18)):
        with pytest.raises(EvidenceRefused):
            unpack(archive + tail)
        with pytest.raises(EvidenceRefused):
            unpack(tail + archive)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data):
    for archive in (data, b"PK\x03\x04" + data, b"PK\x05\x06" + data, packed(FILES)[:200] + data):
        with pytest.raises(EvidenceRefused):
            unpack(archive)


def test_random_damage_is_refused_and_never_raises_anything_else():
    archive = packed(FILES)
    dice = random.Random(7)  # noqa: S311 (which bytes to damage is no secret)
    for _ in range(3000):
        changed = bytearray(archive)
        for _ in range(dice.randint(1, 6)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        if bytes(changed) != archive:
            with pytest.raises(EvidenceRefused):
                unpack(bytes(changed))


def test_an_archive_of_another_program_a_compressed_one_and_a_comment_are_refused():
    bomb = foreign({"bomb": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    commented = packed(FILES)[:-2] + struct.pack("<H", 3) + b"hi!"
    for archive in (foreign(FILES, zipfile.ZIP_STORED), foreign(FILES, zipfile.ZIP_DEFLATED), bomb, commented):
        with pytest.raises(EvidenceRefused):
            unpack(archive)


def test_a_claimed_size_beyond_the_file_is_refused_without_reserving_it():
    archive = bytearray(packed({"bomb": b""}))
    archive[18:26] = struct.pack("<LL", 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(EvidenceRefused, match="cut off"):
        unpack(bytes(archive))


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "a/../evil", "/etc/passwd", "a//b", "", ".", "..", ".hidden", "a/.hidden", "a.", "A", "a b", "a\\b",
        "c:/x", "a\0b", "é", "a/b/c/d/e/f", "x" * 129, "con", "a/nul.txt", "a/", "a\n",
    ],
)  # fmt: skip
def test_a_name_that_could_leave_its_folder_or_confuse_a_file_system_is_refused(name):
    with pytest.raises(EvidenceRefused):
        packed({name: b""})
    label = name.encode()
    honest = packed({"z" * max(1, min(len(label), 128)): b""})
    forged = honest.replace(b"z" * max(1, min(len(label), 128)), label)
    with pytest.raises(EvidenceRefused):
        unpack(forged)


def test_two_files_of_one_name_are_refused():
    one = packed({"a": b"1"})
    local = one[: one.index(b"PK\x01\x02")]
    with pytest.raises(EvidenceRefused, match="twice"):
        unpack(local + one)


def test_too_many_or_no_files_are_refused(monkeypatch):
    monkeypatch.setattr(bundle, "MOST_FILES", 3)
    with pytest.raises(EvidenceRefused):
        packed({})
    four = dict.fromkeys("abcd", b"")
    with pytest.raises(EvidenceRefused):
        packed(four)
    monkeypatch.undo()
    archive = packed(four)
    monkeypatch.setattr(bundle, "MOST_FILES", 3)
    with pytest.raises(EvidenceRefused):
        unpack(archive)


def test_too_large_a_bundle_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "LARGEST_BUNDLE_BYTES", 10)
    with pytest.raises(EvidenceRefused):
        packed({"a": bytes(11)})
    sparse = tmp_path / "huge.zip"
    with sparse.open("wb") as file:
        file.truncate((1 << 26) + 11)
    with pytest.raises(EvidenceRefused, match="too large"):
        read_bundle(sparse)
    with pytest.raises(EvidenceRefused, match="too large"):
        unpack(bytes((1 << 26) + 11))


def test_a_bundle_is_written_whole_and_named_by_its_digest(tmp_path):
    path = tmp_path / "evidence.zip"
    path.write_bytes(b"older")
    assert write_bundle(path, FILES) == canonical.digest_bytes(path.read_bytes())
    assert read_bundle(path) == FILES
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(EvidenceRefused):
        write_bundle(path, {"../x": b""})
    assert read_bundle(path) == FILES


def test_a_path_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "missing.zip", tmp_path):
        with pytest.raises(EvidenceRefused):
            read_bundle(path)
