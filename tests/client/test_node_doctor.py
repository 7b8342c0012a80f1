"""`ringfence-node doctor`: it finds a machine sound that is, and says where one is not."""

import json

import pytest
from behind_walls import NO_LANDLOCK, python

from ringfence_client import kernel, landlock, node_doctor
from ringfence_client.walls import Wall
from ringfence_policy.errors import Fault

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not kernel.IS_LINUX or landlock.abi_version() == 0, reason="this kernel has no Landlock, or it is switched off"
    ),
]
DOCTOR = ("-m", "ringfence_client.cli", "doctor")


def test_a_sound_machine_passes_and_each_wall_has_a_line(tmp_path):
    ended = python(*DOCTOR, "--json", place=tmp_path)
    found = {each["check"]: each for each in json.loads(ended.stdout)}
    assert [name for name, each in found.items() if not each["passed"]] == []
    assert ended.returncode == 0
    for wall in Wall:
        assert len(found[f"wall: {wall}"]["attempts"]) >= 4
        assert "refused" in found[f"wall: {wall}"]["finding"]
    assert "fork bomb started none" in found["wall: processes"]["finding"]
    assert "SIGXCPU" in found["wall: cpu"]["finding"]
    assert "threads ended" in found["wall: memory"]["finding"]
    assert "did not grow" in found["wall: files"]["finding"]
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_without_landlock_fails_with_what_got_through(tmp_path):
    ended = python(*DOCTOR, place=tmp_path, hidden=NO_LANDLOCK)
    assert ended.returncode == 1
    assert "Landlock missing" in ended.stdout
    assert "/etc/passwd: read" in ended.stdout.replace("\n", " ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("way", "told", "words"),
    [
        ("memory", {"filled_bytes": 512 << 20}, "filled 512 MiB of 256 MiB"),
        ("threads", {"started": 20000, "ended": False}, "without end"),
        ("processes", {"tried": 200, "born": 3}, "3 of 200"),
        ("file-size", {"written_bytes": 9}, "wrote 9 bytes"),
    ],
)
def test_what_the_worst_attacks_get_through_is_a_fault(way, told, words, monkeypatch, tmp_path):
    (tmp_path / "grows").touch()
    monkeypatch.setattr(node_doctor, "_break_out", lambda asked, _: told if asked == way else {})
    worst = {
        "memory": node_doctor._eat_memory,
        "threads": node_doctor._start_threads,
        "processes": node_doctor._fork,
        "file-size": node_doctor._grow,
    }
    with pytest.raises(Fault, match=words):
        worst[way](tmp_path)


def test_a_process_that_ends_otherwise_than_by_its_limit_fails_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(node_doctor, "_attacked", lambda *_: (0, "", ""))
    with pytest.raises(Fault, match="not ended by its limit"):
        node_doctor._spin(tmp_path)


def test_a_walled_process_that_cannot_attack_leaves_no_wall_standing(monkeypatch, tmp_path):
    (tmp_path / "grows").touch()
    monkeypatch.setattr(node_doctor, "_attacked", lambda *_: (1, "", "boom"))
    found = node_doctor.wall_findings(tmp_path)
    assert {each.check for each in found} == {f"wall: {wall}" for wall in Wall}
    assert not any(each.passed for each in found)
