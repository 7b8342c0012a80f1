"""`ringfence-node init`, `register`, `join`: from an empty folder to a holder that a coordinator knows."""

import json
import stat

import pytest
from officer_desk import answer, bring_schema_and_data, invitation, node, options, set_up_holder
from tiny_run import TinyRun

from ringfence_client import cli_setup
from ringfence_client.home import HolderHome
from ringfence_policy import thumbprints
from ringfence_policy.cli import LIBRARY
from ringfence_policy.identity import SigningKey
from ringfence_policy.letters import Registration

COORDINATOR_ROOT = SigningKey(kid="tree-consortium/root-1", seed=bytes(range(32)))
OTHER_ROOT = SigningKey(kid="tree-consortium/root-1", seed=bytes(range(1, 33)))


@pytest.fixture
def oak(tmp_path):
    return set_up_holder(tmp_path / "oak")


@pytest.fixture
def letter(tmp_path):
    def write(root=COORDINATOR_ROOT, name="invitation.jws", **changes):
        path = tmp_path / name
        path.write_text(invitation(root, **changes))
        return path

    return write


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_starts_from_nothing_says_what_is_missing_and_finishes_when_it_is_there(tmp_path):
    directory = tmp_path / "oak"
    first = answer("init", directory, *options())
    assert first["written"] == ["holder.toml", "policy.toml"]
    assert first["missing"] == ["schema.toml", "data.csv"]
    assert first["thumbprint"] is None
    assert not (directory / "state").exists()
    bring_schema_and_data(directory)
    second = answer("init", directory)
    assert (second["written"], second["missing"]) == ([], [])
    assert second["thumbprint"] == SigningKey.load(HolderHome(directory).root_key).public().thumbprint
    assert answer("init", directory) == second


def test_the_first_policy_is_the_ready_one_for_this_holder_its_region_and_its_budget(tmp_path):
    directory = tmp_path / "oak"
    answer("init", directory, *options(policy="hospital-cancer-only"))
    policy = HolderHome(directory).read_policy()
    assert (policy.holder_id, policy.dataset_id, policy.version) == ("oak", "oak-leaves", 1)
    assert (policy.epsilon_micro, policy.delta_pico) == (4_000_000, 10_000_000)
    assert (policy.permitted_coordinators, policy.regions) == (("tree-consortium",), ("CH",))
    assert policy.purposes == ("cancer-research",)
    assert "# This data may be used only for" in (directory / "policy.toml").read_text()


@pytest.mark.parametrize("name", sorted(path.stem for path in LIBRARY.glob("*.toml")))
def test_every_ready_policy_can_be_started_from_and_passes_the_check(tmp_path, name):
    answer("init", tmp_path / "oak", *options(policy=name))
    assert answer("policy", "check", tmp_path / "oak" / "policy.toml")["valid"]


def test_a_region_that_the_ready_policy_names_stays_with_the_others(tmp_path):
    answer("init", tmp_path / "oak", *options(policy="hospital-europe-and-switzerland"))
    assert HolderHome(tmp_path / "oak").read_policy().regions == ("CH", "EU")


def test_what_people_wrote_is_never_overwritten(tmp_path):
    directory = tmp_path / "oak"
    answer("init", directory, *options())
    for name in ("holder.toml", "policy.toml"):
        path = directory / name
        path.write_text(path.read_text() + "\n# mine\n")
    answer("init", directory)
    assert all((directory / name).read_text().endswith("# mine\n") for name in ("holder.toml", "policy.toml"))


@pytest.mark.parametrize(
    ("option", "value"), [("--epsilon", "5"), ("--delta", "1e-6"), ("--weight", "70"), ("--holder-id", "elm")]
)
def test_an_option_that_contradicts_what_is_written_is_refused(tmp_path, option, value):
    """Or the officer would believe that the new figure counts."""
    answer("init", tmp_path / "oak", *options())
    refused = answer("init", tmp_path / "oak", option, value, exit_code=2)["error"]
    assert "says otherwise" in refused["summary"]
    assert option[2:].replace("-", "_") in refused["expected"]


def test_the_same_options_again_are_no_contradiction(tmp_path):
    answer("init", tmp_path / "oak", *options())
    assert answer("init", tmp_path / "oak", *options(epsilon="4.0", coordinator=None))["written"] == []


def test_a_policy_option_where_a_policy_stands_is_refused(tmp_path):
    answer("init", tmp_path / "oak", *options())
    refused = answer("init", tmp_path / "oak", "--policy", "hospital-cancer-only", exit_code=2)["error"]
    assert refused["summary"] == "there is a policy already"


@pytest.mark.parametrize(
    "changes",
    [{"holder_id": "Not An Id"}, {"epsilon": "much"}, {"weight": "0"}, {"policy": "no-such-policy"}, {"region": "??"}],
)
def test_an_answer_that_cannot_stand_in_its_file_leaves_nothing_behind(tmp_path, changes):
    error = answer("init", tmp_path / "oak", *options(**changes), exit_code=2)["error"]
    assert error["code"] in ("document-invalid", "usage")
    assert list((tmp_path / "oak").iterdir()) == []


def test_without_a_terminal_nobody_is_asked_and_the_options_are_named(tmp_path):
    refused = answer("init", tmp_path / "oak", *options(weight=None, holder_id=None), exit_code=2)["error"]
    assert refused["expected"] == "--holder-id, --weight"
    assert not (tmp_path / "oak").exists()


def test_a_person_at_a_terminal_is_asked_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_setup, "is_asked", lambda: True)
    said = "oak\nOak Institute\nCH\noak-leaves\n60\n4\n1e-5\ntree-consortium\nhospital-cancer-only\n"
    result = node("init", tmp_path / "oak", said=said)
    assert result.exit_code == 0, result.output
    assert "Still missing" in result.output
    home = HolderHome(tmp_path / "oak")
    assert home.profile.name == "Oak Institute"
    assert home.read_policy().purposes == ("cancer-research",)


def test_data_that_does_not_fit_makes_no_keys(tmp_path):
    directory = tmp_path / "oak"
    answer("init", directory, *options())
    bring_schema_and_data(directory)
    (directory / "data.csv").write_text("length,spots,soil,ill\n1,2,swamp,0\n")
    assert answer("init", directory, exit_code=2)["error"]["code"] == "data-invalid"
    assert not (directory / "state").exists()


def test_nobody_but_the_owner_can_look_into_the_state(oak):
    paths = [oak, *(path for path in (oak / "state").rglob("*")), oak / "state"]
    assert len(paths) > 10
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_supernodes_key_is_one_that_flower_reads_and_lies_apart_from_the_signing_keys(oak):
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415

    path = HolderHome(oak).supernode_key
    # As flwr/supernode/cli/flower_supernode.py reads it.
    key = load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert path.parent != HolderHome(oak).keys
    assert sorted(one.name for one in path.parent.iterdir()) == ["supernode.key"]


# --- register ---------------------------------------------------------------------------------------------------------


def test_the_registration_says_who_the_holder_is_and_is_signed_by_the_root_that_is_read_out(oak, tmp_path):
    said = answer("register", oak, "--out", tmp_path / "oak.jws")
    letter = Registration.open((tmp_path / "oak.jws").read_text())
    assert (letter.card.holder_id, letter.card.weight, letter.card.region) == ("oak", 60, "CH")
    assert letter.root.thumbprint == said["thumbprint"] == answer("init", oak)["thumbprint"]
    assert letter.flower_key == answer("keys", "list", oak)["flower"]
    assert "PRIVATE" not in (tmp_path / "oak.jws").read_text()


def test_a_holder_of_before_gets_its_supernodes_key_when_it_registers(oak, tmp_path):
    HolderHome(oak).supernode_key.unlink()
    HolderHome(oak).supernode_key.parent.rmdir()
    answer("register", oak, "--out", tmp_path / "oak.jws")
    assert Registration.open((tmp_path / "oak.jws").read_text()).flower_key == answer("keys", "list", oak)["flower"]


def test_registering_twice_names_the_same_supernode(oak, tmp_path):
    for name in ("one.jws", "two.jws"):
        answer("register", oak, "--out", tmp_path / name)
    one, two = (Registration.open((tmp_path / name).read_text()) for name in ("one.jws", "two.jws"))
    assert one.flower_key == two.flower_key


def test_a_letter_does_not_overwrite_a_file(oak, tmp_path):
    (tmp_path / "precious").write_text("keep me")
    assert answer("register", oak, "--out", tmp_path / "precious", exit_code=2)["error"]["code"] == "usage"
    assert (tmp_path / "precious").read_text() == "keep me"


def test_a_supernodes_key_that_others_can_read_registers_nothing(oak, tmp_path):
    HolderHome(oak).supernode_key.chmod(0o644)
    assert answer("register", oak, "--out", tmp_path / "oak.jws", exit_code=3)["error"]["code"] == "trust-refused"
    assert not (tmp_path / "oak.jws").exists()


@pytest.mark.parametrize(
    "command",
    [
        "register --out x",
        "join x",
        "status",
        "ledger",
        "decisions",
        "suspend",
        "resume",
        "revoke",
        "keys list",
        "keys rotate",
        "sign",
        "schema",
        "peer elm x",
    ],
)
def test_a_command_before_the_holder_is_set_up_says_what_to_do_first(tmp_path, command):
    answer("init", tmp_path / "oak", *options())
    words = command.split()
    first = 2 if words[0] == "keys" else 1
    refused = answer(*words[:first], tmp_path / "oak", *words[first:], exit_code=2)["error"]
    assert refused["next_step"] == f"ringfence-node init {tmp_path / 'oak'}"


# --- join -------------------------------------------------------------------------------------------------------------


def test_a_coordinator_whose_thumbprint_was_compared_is_kept(oak, letter):
    thumbprint = COORDINATOR_ROOT.public().thumbprint
    sent = letter()
    joined = answer("join", oak, sent, "--thumbprint", f" {thumbprint[:20]} {thumbprint[20:]} ")
    assert (joined["thumbprint"], joined["address"]) == (thumbprint, "forest.example:9092")
    assert answer("coordinator", oak) == joined
    assert HolderHome(oak).coordinator.read_text() == sent.read_text()
    assert answer("status", oak)["coordinator"] == "tree-consortium"


def test_a_thumbprint_that_differs_keeps_nothing(oak, letter):
    refused = answer("join", oak, letter(), "--thumbprint", OTHER_ROOT.public().thumbprint, exit_code=3)["error"]
    assert refused["code"] == "trust-refused"
    assert not HolderHome(oak).coordinator.exists()


def test_nobody_joins_without_comparing(oak, letter):
    assert "--thumbprint" in answer("join", oak, letter(), exit_code=2)["error"]["expected"]
    assert not HolderHome(oak).coordinator.exists()


@pytest.mark.parametrize(("said", "is_kept"), [("y\n", True), ("n\n", False)])
def test_a_person_at_a_terminal_compares_and_says_so(oak, letter, monkeypatch, said, is_kept):
    monkeypatch.setattr(thumbprints, "is_asked", lambda: True)
    result = node("join", oak, letter(), said=said)
    assert result.exit_code == (0 if is_kept else 3)
    assert COORDINATOR_ROOT.public().thumbprint in result.output
    assert HolderHome(oak).coordinator.exists() is is_kept


# --- peer -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def elm_root(tmp_path):
    path = tmp_path / "elm-root.jwk"
    path.write_text(json.dumps(OTHER_ROOT.public().jwk))
    return path


def test_a_peer_is_kept_by_the_thumbprint_that_it_read_out_and_by_no_other(oak, elm_root):
    thumbprint, another = (root.public().thumbprint for root in (OTHER_ROOT, COORDINATOR_ROOT))
    assert (
        answer("peer", oak, "elm", elm_root, "--thumbprint", another, exit_code=3)["error"]["code"] == "trust-refused"
    )
    assert "--thumbprint" in answer("peer", oak, "elm", elm_root, exit_code=2)["error"]["expected"]
    assert not HolderHome(oak).peers.exists()
    assert answer("peer", oak, "elm", elm_root, "--thumbprint", thumbprint) == {"elm": thumbprint}
    assert answer("peer", oak, "elm", elm_root) == {"elm": thumbprint}  # known already: nobody compares again


@pytest.mark.parametrize(("said", "is_kept"), [("y\n", True), ("n\n", False)])
def test_a_person_at_a_terminal_compares_a_peers_thumbprint(oak, elm_root, monkeypatch, said, is_kept):
    monkeypatch.setattr(thumbprints, "is_asked", lambda: True)
    result = node("peer", oak, "elm", elm_root, said=said)
    assert OTHER_ROOT.public().thumbprint in result.output
    assert (result.exit_code == 0) is is_kept
    assert HolderHome(oak).peers.exists() is is_kept


# --- a coordinator that is known --------------------------------------------------------------------------------------


@pytest.fixture
def joined(oak, letter):
    answer("join", oak, letter(issued_ms=2_000), "--thumbprint", COORDINATOR_ROOT.public().thumbprint)
    return oak


def test_a_newer_letter_of_the_same_root_is_taken_without_comparing_again(joined, letter):
    newer = letter(issued_ms=3_000, address="meadow.example:443", name="newer.jws")
    assert answer("join", joined, newer)["address"] == "meadow.example:443"
    assert answer("coordinator", joined)["address"] == "meadow.example:443"


@pytest.mark.parametrize(
    "changes",
    [{"issued_ms": 1_999}, {"issued_ms": 2_000, "address": "meadow.example:443"}, {"coordinator": "other-consortium"}],
    ids=["older", "another of the same moment", "another organisation"],
)
def test_a_letter_that_is_older_or_contradicts_the_one_kept_is_refused(joined, letter, changes):
    before = HolderHome(joined).coordinator.read_bytes()
    other = letter(name="other.jws", **({"issued_ms": 3_000} | changes))
    thumbprint = COORDINATOR_ROOT.public().thumbprint
    assert answer("join", joined, other, "--thumbprint", thumbprint, exit_code=3)["error"]["code"] == "trust-refused"
    assert HolderHome(joined).coordinator.read_bytes() == before


def test_another_root_key_than_the_one_known_is_refused_whatever_is_read_out(joined, letter):
    other = letter(OTHER_ROOT, name="other.jws", issued_ms=3_000)
    refused = answer("join", joined, other, "--thumbprint", OTHER_ROOT.public().thumbprint, exit_code=3)["error"]
    assert "another coordinator is known here" in refused["summary"]


def test_another_root_key_than_a_run_was_met_under_is_refused(tiny_scenario, letter):
    """A holder that took part in a run has the coordinator's root key pinned in its ledger."""
    run = TinyRun(tiny_scenario())
    run.propose()
    home = run.home("elm")
    run.close()
    other = letter(OTHER_ROOT)
    refused = answer("join", home.directory, other, "--thumbprint", OTHER_ROOT.public().thumbprint, exit_code=3)
    assert "another root key" in refused["error"]["summary"]
    assert not home.coordinator.exists()


@pytest.mark.parametrize("content", [b"", b"not a letter", b"\xff\xfe", b"a.b.c"])
def test_what_is_no_letter_is_refused(oak, tmp_path, content):
    (tmp_path / "letter").write_bytes(content)
    assert answer("join", oak, tmp_path / "letter", exit_code=3)["error"]["code"] == "trust-refused"


def test_a_registration_is_no_invitation(oak, tmp_path):
    answer("register", oak, "--out", tmp_path / "oak.jws")
    assert answer("join", oak, tmp_path / "oak.jws", exit_code=3)["error"]["code"] == "trust-refused"


def test_a_letter_that_is_not_there_is_named(oak, tmp_path):
    assert str(tmp_path / "none") in json.dumps(answer("join", oak, tmp_path / "none", exit_code=2))


def test_a_holder_without_a_coordinator_says_how_to_join_one(oak):
    assert "ringfence-node join" in answer("coordinator", oak, exit_code=2)["error"]["next_step"]
