"""Any byte of a bundle changed, and any file that is no bundle, is a failed check and never a traceback."""

import copy
import io
import random
import zipfile

import pytest

from ringfence_policy import bundle_layout as layout
from ringfence_policy.bundle import pack, unpack
from ringfence_policy.errors import EvidenceRefused
from ringfence_policy.verify import verify_bundle

DICE = 20261121


def packed(files):
    return b"".join(pack(files))


@pytest.fixture(scope="module")
def archive(honest):
    honest.verify()
    return (honest.world.directory / "evidence.zip").read_bytes()


@pytest.fixture
def verify_bytes(honest, tmp_path):
    def verify(data):
        path = tmp_path / "evidence.zip"
        path.write_bytes(data)
        return verify_bundle(path, honest.world.roots)

    return verify


def test_every_byte_outside_the_files_contents_is_fixed(archive, verify_bytes):
    """Exhaustive over headers and directory, one changed bit pattern each."""
    contents = set()
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for entry in opened.infolist():
            start = entry.header_offset + 30 + len(entry.filename)
            contents |= set(range(start, start + entry.file_size))
    headers = [place for place in range(len(archive)) if place not in contents]
    assert len(headers) > 2000
    for place in headers:
        changed = bytearray(archive)
        changed[place] ^= 0x01
        with pytest.raises(EvidenceRefused):
            unpack(bytes(changed))
    for place in headers[:: len(headers) // 20]:
        changed = bytearray(archive)
        changed[place] ^= 0x80
        assert verify_bytes(bytes(changed)).problems[0].name == "bundle"


def test_a_dense_sample_of_all_other_bytes_is_fixed(archive):
    """The archive's own checksums already notice; the next test repairs them as an attacker would."""
    for place in range(DICE % 5, len(archive), 5):
        changed = bytearray(archive)
        changed[place] ^= 0x20
        with pytest.raises(EvidenceRefused):
            unpack(bytes(changed))


def test_any_byte_of_any_file_changed_fails_even_when_the_archive_is_packed_again(archive, verify_bytes):
    """Bytes all along the manifest, and bytes at random places of every other file."""
    files = unpack(archive)
    dice = random.Random(DICE)  # noqa: S311 (which bytes to damage is no secret)
    places = [(layout.MANIFEST, place) for place in range(0, len(files[layout.MANIFEST]), 7)]
    for name, data in files.items():
        places += [(name, dice.randrange(len(data))) for _ in range(2)]
    for name, place in places:
        changed = bytearray(files[name])
        changed[place] ^= 1 << dice.randrange(8)
        outcome = verify_bytes(packed({**files, name: bytes(changed)}))
        assert not outcome.passed, (name, place)
        assert any(problem.name in {"bundle", "manifest"} for problem in outcome.problems), (name, place)


def test_a_file_that_is_no_bundle_is_one_plain_problem(archive, verify_bytes, tmp_path, honest):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("holders/alpha/log.jsonl", bytes(30_000_000))
    escape = io.BytesIO()
    with zipfile.ZipFile(escape, "w") as opened:
        opened.writestr("../../etc/passwd", "x")
    dice = random.Random(DICE)  # noqa: S311 (as above)
    for data in (
        b"", b"PK", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(26), b"not a zip at all", dice.randbytes(5000),
        archive[:-1], archive[: len(archive) // 2], archive[1:], archive + b"\0", archive * 2, bomb.getvalue(),
        escape.getvalue(), packed({"a": b""}),
    ):  # fmt: skip
        outcome = verify_bytes(data)
        assert not outcome.passed
        assert outcome.problems[0].name in {"bundle", "manifest"}
        assert outcome.problems[-1].name == "everything else"
        assert outcome.run_id == ""
    for path in (tmp_path, tmp_path / "missing.zip"):
        assert verify_bundle(path, honest.world.roots).problems[0].name == "bundle"


def mutate(value, dice):
    """One random structural change somewhere inside a record."""
    if isinstance(value, dict) and value:
        key = dice.choice(sorted(value))
        if dice.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: mutate(value[key], dice)}
    if isinstance(value, list) and value:
        place = dice.randrange(len(value))
        return [*value[:place], mutate(value[place], dice), *value[place + 1 :]]
    return dice.choice([None, True, 0, -1, 2**53 - 1, "", "x", [], {}, [[]], {"a": 1}, "sha256:" + "0" * 64])


def test_random_records_signed_by_everyone_fail_without_a_traceback(honest):
    """All parties conspire: every log is re-written and signed again by its owner. Nothing may raise, or pass."""
    dice = random.Random(DICE)  # noqa: S311 (as above)
    for _ in range(40):
        changes = {}
        for owner in dice.sample(["alpha", "beta", "gamma", "consortium"], dice.randint(1, 4)):
            records = copy.deepcopy(honest.log(owner))
            for _ in range(dice.randint(1, 3)):
                place = dice.randrange(len(records))
                changed = mutate(records[place], dice)
                records[place] = changed if isinstance(changed, dict) else {}
            changes |= honest.relog(owner, records)
        outcome = honest.verify(changes)
        assert not outcome.passed
        assert all(problem.detail for problem in outcome.problems)
