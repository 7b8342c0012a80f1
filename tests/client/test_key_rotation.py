"""Keys are replaced while runs go on: what was signed stays proven, a kill at any step leaves papers that hold."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
from officer_desk import answer, node, set_up_holder
from tiny_run import clauses_of

from ringfence_client import key_rotation, officer
from ringfence_client.home import HolderHome
from ringfence_client.key_rotation import GRACE_MS, key_states, rotate, take_root_offline
from ringfence_client.papers import Papers
from ringfence_client.recovery import Presence
from ringfence_policy.database import Database
from ringfence_policy.decision import Point
from ringfence_policy.documents import KeyList, Role
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.evidence_log import EvidenceLog
from ringfence_policy.identity import DocumentType, SigningKey, parse, sign
from ringfence_policy.ledger import now_ms
from ringfence_policy.policy import read_policy

ROLES = [Role.POLICY, Role.STATUS, Role.NODE]


def replace_key(home, role, *, is_stolen=False, at_ms=None):
    root = SigningKey.load(home.root_key)
    return rotate(home, role, root=root, is_stolen=is_stolen, now_ms=at_ms or now_ms())


def signers(home):
    return {
        "policy": parse(home.signed_policy.read_text()).kid,
        "status": parse(home.status.read_text()).kid,
        "policies": {parse(path.read_text()).kid for path in (home.papers / "policies").glob("*.jws")},
    }


@pytest.fixture
def oak(tmp_path):
    return HolderHome(set_up_holder(tmp_path / "oak"))


# --- one rotation -----------------------------------------------------------------------------------------------------


def test_a_new_key_signs_and_the_old_one_is_retired(oak):
    for role in ROLES:
        assert replace_key(oak, role).kid == f"oak/{role.value}-2"
    now = now_ms()
    states = {one.listed.public_key.kid: (one.state, one.is_here) for one in key_states(oak, now_ms=now)}
    assert states == {f"oak/{role.value}-1": ("retired", False) for role in ROLES} | {
        f"oak/{role.value}-2": ("signs", True) for role in ROLES
    }
    assert signers(oak) == {"policy": "oak/policy-2", "status": "oak/status-2", "policies": {"oak/policy-2"}}


def test_a_stolen_key_is_left_out_of_the_list_and_its_name_is_not_used_again(oak):
    replace_key(oak, Role.STATUS, is_stolen=True)
    assert [key.public_key.kid for key in officer.own_keys(oak).keys if "status" in key.roles] == ["oak/status-2"]
    replace_key(oak, Role.STATUS, is_stolen=True)
    assert [key.public_key.kid for key in officer.own_keys(oak).keys if "status" in key.roles] == ["oak/status-3"]


def test_the_private_half_of_a_replaced_key_is_gone_and_the_new_one_is_the_owners_alone(oak):
    old = (oak.keys / "policy.jwk").read_bytes()
    replace_key(oak, Role.POLICY)
    assert all(path.read_bytes() != old for path in oak.keys.iterdir())
    assert stat.S_IMODE((oak.keys / "policy.jwk").stat().st_mode) == 0o600
    assert sorted(path.name for path in oak.keys.glob("*.jwk")) == ["node.jwk", "policy.jwk", "root.jwk", "status.jwk"]


def test_all_versions_of_the_policy_are_signed_again_and_say_the_same(oak):
    text = oak.policy_file.read_text()
    oak.policy_file.write_text(text.replace("version = 1", "version = 2"))
    officer.sign_policy(oak)
    replace_key(oak, Role.POLICY)
    assert signers(oak)["policies"] == {"oak/policy-2"}
    assert len(list((oak.papers / "policies").glob("*.jws"))) == 2
    assert officer.signed_policy(oak).digest == read_policy(oak.policy_file).digest


def test_a_policy_that_somebody_put_there_is_not_signed_by_the_new_key(oak):
    thief = SigningKey.generate("oak/policy-1")
    wide = officer.signed_policy(oak).model_copy(update={"max_rounds": 999})
    oak.signed_policy.write_text(sign(wide.to_document(), type=DocumentType.POLICY, key=thief))
    with pytest.raises(TrustRefused):
        replace_key(oak, Role.POLICY)
    assert parse(oak.signed_policy.read_text()).kid == "oak/policy-1"


def test_revocations_and_a_suspension_survive_a_new_status_key(oak):
    officer.revoke(oak, reason="consent", now_ms=now_ms())
    officer.suspend(oak, reason="an audit", now_ms=now_ms())
    replace_key(oak, Role.STATUS, is_stolen=True)
    assert officer.is_revoked(oak)
    assert officer.is_suspended(oak)
    assert officer.resume(oak, now_ms=now_ms()).revoked


def test_signing_suspending_and_renewing_go_on_under_new_keys(oak):
    for role in ROLES:
        replace_key(oak, role)
    oak.policy_file.write_text(oak.policy_file.read_text().replace("version = 1", "version = 2"))
    assert officer.sign_policy(oak).version == 2
    assert officer.suspend(oak, reason="an audit", now_ms=now_ms()).suspended is not None
    assert officer.renew_status(oak, now_ms=now_ms()).suspended is not None


def test_a_list_signed_by_another_root_is_refused(oak):
    other = SigningKey.generate("oak/root-1")
    listed = officer.own_keys(oak)
    oak.key_list.write_text(sign(listed.to_document(), type=DocumentType.KEYS, key=other))
    with pytest.raises(TrustRefused):
        replace_key(oak, Role.STATUS)
    with pytest.raises(TrustRefused):
        officer.renew_status(oak, now_ms=now_ms())


# --- in the middle of a run -------------------------------------------------------------------------------------------


def test_policy_and_status_keys_are_replaced_between_rounds_and_nobody_is_refused(tiny_run):
    run = tiny_run(plan={"training.rounds": 3})

    def both():
        replace_key(run.home("elm"), Role.POLICY)
        replace_key(run.home("elm"), Role.STATUS)

    run.before("train", 2, both)
    run.before("train", 3, both)  # also between the coordinator's look and the holder's own
    outcomes = run.train(rounds=3)
    assert [outcome.cohort for outcome in outcomes] == [["alder", "birch", "elm"]] * 3
    assert [outcome.refused for outcome in outcomes] == [[]] * 3


def test_the_nodes_own_key_waits_until_the_node_is_closed(tiny_run):
    """An open node signs with the key it has: replaced under it, everything it says would be refused."""
    run = tiny_run()
    run.propose()
    home = run.home("elm")
    before = home.key_list.read_bytes()
    with pytest.raises(UsageError, match="goes on signing with the key it has"):
        replace_key(home, Role.NODE)
    for which in (["--role", "node"], []):
        assert answer("keys", "rotate", home.directory, *which, exit_code=2)["error"]["code"] == "usage"
    assert home.key_list.read_bytes() == before
    run.restart_nodes()
    replace_key(home, Role.NODE)
    run.governor.offer(run.grid, 1)
    assert "elm" in run.governor.views


def test_whoever_replaces_the_nodes_own_key_waits_for_a_node_that_is_just_opening(tiny_run, monkeypatch):
    run = tiny_run()
    home, load, waits = run.home("elm"), SigningKey.load, []

    def meanwhile(path):
        if path == home.keys / "node.jwk":
            with home.presence.open() as held, pytest.raises(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waits.append(path)
        return load(path)

    monkeypatch.setattr(SigningKey, "load", meanwhile)
    run.propose()
    assert waits


def test_papers_under_a_disowned_key_are_refused(tiny_run):
    run = tiny_run()
    run.propose()
    home = run.home("elm")
    old = {path: path.read_bytes() for path in (home.signed_policy, home.status)}
    replace_key(home, Role.POLICY, is_stolen=True)
    replace_key(home, Role.STATUS, is_stolen=True)
    home.signed_policy.write_bytes(old[home.signed_policy])
    assert clauses_of(run.request("elm")) == ("signature",)
    replace_key(home, Role.STATUS)
    home.status.write_bytes(old[home.status])
    assert clauses_of(run.request("elm"))[0] in ("signature", "status")


def test_a_retired_key_signs_nothing_more(oak):
    old = SigningKey.load(oak.keys / "policy.jwk")
    replace_key(oak, Role.POLICY)
    from ringfence_policy.trust_store import TrustStore  # noqa: PLC0415

    store = TrustStore(officer.root_of(oak))
    store.accept_keys(oak.key_list.read_text())
    wide = officer.signed_policy(oak).model_copy(update={"version": 2, "max_rounds": 999})
    with pytest.raises(TrustRefused, match="unknown, withdrawn or not valid at this time"):
        store.accept_policy(sign(wide.to_document(), type=DocumentType.POLICY, key=old), now_ms() + GRACE_MS + 1)


# --- killed at each step ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had died here."""


def papers_hold(home):
    """What a node would find: papers under which it permits, as `read_papers` judges them."""
    from ringfence_client.papers import read_papers  # noqa: PLC0415
    from ringfence_client.watched_files import WatchedFiles  # noqa: PLC0415
    from ringfence_policy.trust_store import TrustStore  # noqa: PLC0415

    trust = TrustStore(officer.root_of(home))
    found = read_papers(home, WatchedFiles(), trust, now_ms=now_ms(), point=Point.BEFORE_TRAINING)
    assert isinstance(found, Papers), found
    assert found.status is not None
    return found


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.value)
@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("is_stolen", [False, True], ids=["retired", "stolen"])
def test_a_rotation_killed_after_any_write_leaves_papers_that_hold_and_is_finished_by_the_next(
    oak, monkeypatch, role, steps, is_stolen
):
    done = 0

    def counted(write):
        def then_die(*args, **options):
            nonlocal done
            result = write(*args, **options)
            done += 1
            if done == steps:
                raise Killed
            return result

        return then_die

    with monkeypatch.context() as patched:
        if steps:
            for module in (key_rotation, officer):
                patched.setattr(module, "write_durably", counted(module.write_durably))
            patched.setattr(key_rotation, "_save_whole", counted(key_rotation._save_whole))
            patched.setattr(key_rotation, "sync_directory", counted(key_rotation.sync_directory))
        try:
            replace_key(oak, role, is_stolen=is_stolen)
        except Killed:
            pass
        else:
            assert steps == 0 or done < steps
    papers_hold(oak)
    officer.renew_status(oak, now_ms=now_ms())  # what a node does meanwhile
    papers_hold(oak)
    replace_key(oak, role, is_stolen=is_stolen)
    papers_hold(oak)
    signing = [one for one in key_states(oak, now_ms=now_ms()) if one.state == "signs"]
    assert sorted(one.listed.roles for one in signing) == sorted((each.value,) for each in ROLES)
    assert all(one.is_here for one in signing)
    assert not list(oak.keys.glob("*.next.jwk"))
    listed = [one.public_key.kid for one in officer.own_keys(oak).keys if role.value in one.roles]
    if is_stolen:
        assert len(listed) == 1
    else:
        assert f"oak/{role.value}-1" in listed


def test_a_key_list_only_moves_forward(oak):
    numbers = [officer.own_keys(oak).seq]
    for role in ROLES:
        replace_key(oak, role)
        numbers.append(officer.own_keys(oak).seq)
    assert numbers == sorted(set(numbers))


# --- the root key offline ---------------------------------------------------------------------------------------------


def test_the_root_key_goes_offline_and_is_given_where_it_is_needed(oak, tmp_path):
    stick = tmp_path / "stick.jwk"
    assert answer("keys", "root-offline", oak.directory, "--to", stick) == {"root": str(stick)}
    assert not oak.root_key.exists()
    assert answer("keys", "list", oak.directory)["root"]["is_here"] is False
    assert "--root" in answer("keys", "rotate", oak.directory, exit_code=2)["error"]["next_step"]
    assert answer("register", oak.directory, "--out", tmp_path / "a", exit_code=2)["error"]["code"] == "usage"
    assert answer("keys", "rotate", oak.directory, "--root", stick)["keys"]["policy"] == "oak/policy-2"
    answer("register", oak.directory, "--out", tmp_path / "a", "--root", stick)
    officer.renew_status(oak, now_ms=now_ms())  # what runs every few minutes needs no root


def test_a_move_that_was_interrupted_is_finished_by_the_next(oak, tmp_path):
    stick = tmp_path / "stick.jwk"
    shutil.copy(oak.root_key, stick)
    os.chmod(stick, 0o600)  # noqa: PTH101
    take_root_offline(oak, stick)
    assert not oak.root_key.exists()
    assert SigningKey.load(stick).public().thumbprint == officer.root_of(oak).thumbprint


def test_the_root_key_stays_where_the_copy_could_be_read_by_others_or_is_another_key(oak, tmp_path, monkeypatch):
    other = tmp_path / "other.jwk"
    SigningKey.generate("oak/root-1").save(other)
    with pytest.raises(TrustRefused, match="not the root key of this holder"):
        take_root_offline(oak, other)
    stick = tmp_path / "stick.jwk"
    save = SigningKey.save

    def as_on_a_stick_that_everybody_reads(self, path):
        save(self, path)
        path.chmod(0o644)

    monkeypatch.setattr(SigningKey, "save", as_on_a_stick_that_everybody_reads)
    with pytest.raises(TrustRefused):
        take_root_offline(oak, stick)
    assert not stick.exists()
    assert oak.root_key.exists()


def test_the_root_key_does_not_move_within_the_state_or_to_a_folder_that_is_not_there(oak, tmp_path):
    for place in (oak.keys / "elsewhere.jwk", tmp_path / "none" / "stick.jwk"):
        answer("keys", "root-offline", oak.directory, "--to", place, exit_code=2)
    assert oak.root_key.exists()


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_command_replaces_one_key_or_all_that_sign(oak):
    assert answer("keys", "rotate", oak.directory, "--role", "status")["keys"] == {"status": "oak/status-2"}
    made = answer("keys", "rotate", oak.directory)["keys"]
    assert made == {"policy": "oak/policy-2", "status": "oak/status-3", "node": "oak/node-2"}
    shown = node("keys", "list", oak.directory).output
    assert "oak/status-1  status, retired" in shown
    assert "oak/status-3  status, signs until" in shown


def test_a_new_supernode_key_needs_no_root_and_asks_for_a_new_registration(oak):
    before = answer("keys", "list", oak.directory)["flower"]
    oak.root_key.unlink()
    shown = node("keys", "rotate", oak.directory, "--role", "flower")
    assert shown.exit_code == 0
    assert "ringfence-node register" in shown.output
    assert answer("keys", "list", oak.directory)["flower"] != before


@pytest.mark.parametrize("name", ["root", "plan", "everything"])
def test_a_role_that_no_holder_has_is_refused(oak, name):
    refused = answer("keys", "rotate", oak.directory, "--role", name, exit_code=2)["error"]
    assert refused["expected"] == "policy, status, node or flower"


def test_another_holders_root_key_replaces_nothing(oak, tmp_path):
    other = HolderHome(set_up_holder(tmp_path / "elm", holder_id="elm", dataset="elm-leaves"))
    before = oak.key_list.read_bytes()
    refused = answer("keys", "rotate", oak.directory, "--root", other.root_key, exit_code=3)["error"]
    assert refused["code"] == "trust-refused"
    assert oak.key_list.read_bytes() == before


def test_a_presence_ends_also_when_a_rotation_is_refused(oak):
    with pytest.raises(TrustRefused):
        replace_key_with(oak, SigningKey.generate("oak/root-1"))
    presence = Presence(oak)
    assert presence.is_alone
    presence.close()


def replace_key_with(home, root):
    listed = KeyList.from_document(officer.own_keys(home).to_document())
    home.key_list.write_text(sign(listed.to_document(), type=DocumentType.KEYS, key=root))
    rotate(home, Role.NODE, root=root, is_stolen=False, now_ms=now_ms())


# --- evidence ---------------------------------------------------------------------------------------------------------


def run_in_a_process(scenario, act=None):
    """`ringfence run`, with something done from outside after its first round."""
    command = [sys.executable, "-m", "ringfence_server.cli", "run", str(scenario.directory), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while act is not None and running.poll() is None:
            events = list(scenario.directory.glob("runs/*/events.jsonl"))
            if any('"round-closed"' in path.read_text() for path in events):
                act()
                break
            time.sleep(0.01)
        out, errors = running.communicate(timeout=250)
    assert running.returncode == 0, errors
    return json.loads(out)


def test_evidence_of_a_run_whose_keys_were_replaced_in_the_middle_verifies(tiny_scenario):
    """What the old keys signed in their time stays proven, to somebody who has the root keys and nothing else."""
    scenario = tiny_scenario(
        plan={"training.rounds": 16, "privacy.noise_multiplier_max": "40"},
        policies={"alder": {"data.rehearsal": "forbidden"}},
    )
    home = HolderHome(scenario.holder("elm"))

    def act():
        replace_key(home, Role.POLICY)
        replace_key(home, Role.STATUS)

    first = run_in_a_process(scenario, act)
    assert first["evidence"]["verified"], first["evidence"]["checks"]
    with Database.open(home.database, must_exist=True) as database:
        log = EvidenceLog(database, origin="ringfence/holder/elm")
        named = {record["policy_key_id"] for record in log.records() if record["kind"] == "decision"}
    assert named == {"elm/policy-1", "elm/policy-2"}, "the keys were not replaced in the middle of the run"
    assert all("elm" in one["cohort"] for one in first["rounds"])


def test_evidence_of_a_run_after_the_nodes_key_was_replaced_verifies(tiny_scenario):
    """The log goes on under the new key, and the coordinator holds checkpoints that the old one signed."""
    scenario = tiny_scenario(
        plan={"training.rounds": 1},
        profiles={holder: {"dataset.epsilon": "50"} for holder in ("alder", "birch", "elm")},
    )
    run_in_a_process(scenario)
    home = HolderHome(scenario.holder("elm"))
    replace_key(home, Role.NODE)
    scenario.write_policy("elm", {"policy.version": 2, "privacy.epsilon": "20"})  # the first run took the whole budget
    officer.sign_policy(home)
    second = run_in_a_process(scenario)
    assert second["evidence"]["verified"], second["evidence"]["checks"]
    assert "elm" in second["rounds"][0]["cohort"]
