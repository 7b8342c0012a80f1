"""From nothing to a deployment, and every command that looks at one, without a SuperLink."""

import json
import re
import shutil
from datetime import timedelta

import pytest
from letters import Correspondent, supernode_key
from typer.testing import CliRunner

from ringfence_policy.errors import DocumentInvalid, ScenarioBusy, ScenarioInvalid
from ringfence_policy.letters import Invitation, read_letter
from ringfence_policy.transport_keys import CERTIFICATE_DAYS, Certified
from ringfence_server.cli import app
from ringfence_server.coordinator_service import _serving, is_serving
from ringfence_server.deployment import load_deployment, now_utc, prepare_transport

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OAK = Correspondent.named("oak")


def say(*arguments, fed=None):
    result = CliRunner().invoke(app, [str(one) for one in arguments], input=fed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr


def ask(*arguments):
    code, text = say(*arguments, "--json")
    return code, json.loads(text)


@pytest.fixture
def place(tmp_path):
    """A deployment of the heart scenario's plan."""
    code, text = say("coordinator", "init", tmp_path / "d", "--name", "forest.example,10.1.2.3", "--from", "heart")
    assert code == 0, text
    return tmp_path / "d"


@pytest.fixture
def letter(tmp_path):
    path = tmp_path / "oak.jws"
    path.write_text(OAK.write(supernode_key()))
    return path


def test_init_makes_all_that_a_coordinator_needs_and_says_what_comes_next(tmp_path):
    code, text = say("coordinator", "init", tmp_path / "d", "--name", "forest.example", "--from", "heart")
    assert code == 0
    for path in ("plan.toml", "plan-commercial.toml", "schema.toml", "coordinator.toml", "invitation.jws"):
        assert (tmp_path / "d" / path).is_file()
    assert not (tmp_path / "d" / "holders").exists()
    deployment = load_deployment(tmp_path / "d")
    invitation = Invitation.open(read_letter(deployment.invitation_file.read_bytes()))
    assert invitation.root.thumbprint in text
    assert (invitation.coordinator, invitation.address) == ("heart-consortium", "forest.example:9092")
    for command in ("coordinator register", "coordinator start"):
        assert f"ringfence {command} {tmp_path / 'd'}" in text


def test_no_private_key_of_a_deployment_is_readable_by_others(place):
    private = [path for path in place.rglob("*") if re.search(r"\.key(\.jwk)?$", path.name)]
    assert len(private) == 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
    assert all((place / "coordinator" / name).stat().st_mode & 0o077 == 0 for name in ("", "transport", "holders"))


def test_settings_that_init_writes_are_read_back_with_what_was_asked_for(tmp_path):
    options = ("--port", "9192", "--superlink-port", "9193", "--listen", "127.0.0.1", "--id", "tree-consortium")
    assert say("coordinator", "init", tmp_path / "d", "--name", "a.example,::1", *options)[0] == 0
    settings = load_deployment(tmp_path / "d").settings
    assert (settings.coordinator, settings.names, settings.listen) == (
        "tree-consortium",
        ("a.example", "::1"),
        "127.0.0.1",
    )
    assert (settings.port, settings.superlink_port) == (9192, 9193)


@pytest.mark.parametrize("names", ["", "a b", "http://a.example", "a.example:9092", "-a.example", "a..example"])
def test_a_name_that_is_none_makes_no_deployment(tmp_path, names):
    code, text = say("coordinator", "init", tmp_path / "d", "--name", names, "--from", "heart")
    assert code == 2
    assert "names" in text
    assert not (tmp_path / "d").exists()


def test_without_a_plan_somebody_has_to_say_who_coordinates(tmp_path):
    code, text = say("coordinator", "init", tmp_path / "d", "--name", "a.example")
    assert code == 2
    assert "--id" in text


def test_a_deployment_is_not_made_twice_and_overwrites_no_plan(place, tmp_path):
    assert say("coordinator", "init", place, "--name", "a.example")[0] == 2
    (tmp_path / "e").mkdir()
    shutil.copyfile(place / "plan.toml", tmp_path / "e" / "plan.toml")
    code, text = say("coordinator", "init", tmp_path / "e", "--name", "a.example", "--from", "heart")
    assert code == 2
    assert "nothing is overwritten" in text


def test_an_unknown_setting_is_refused_with_its_line(place):
    (place / "coordinator.toml").write_text((place / "coordinator.toml").read_text() + "prot = 1\n")
    with pytest.raises(DocumentInvalid, match=r"coordinator\.toml:8"):
        load_deployment(place)


def test_a_plan_of_another_coordinator_is_refused(place):
    path = place / "plan.toml"
    path.write_text(path.read_text().replace('"heart-consortium"', '"somebody-else"'))
    with pytest.raises(ScenarioInvalid, match="another coordinator"):
        load_deployment(place).read_plan()


# --- certificates ----------------------------------------------------------------------------------------------------


def front(place):
    folder = place / "coordinator" / "transport"
    return Certified.load(folder / "front.crt", folder / "front.key")


def test_a_certificate_is_made_anew_a_month_before_it_runs_out_and_not_before(place):
    deployment, before = load_deployment(place), front(place)
    assert not prepare_transport(deployment, now=now_utc() + timedelta(days=CERTIFICATE_DAYS - 32))
    assert front(place) == before
    assert prepare_transport(deployment, now=now_utc() + timedelta(days=CERTIFICATE_DAYS - 29))
    assert front(place).expires > before.expires


def test_the_superlinks_own_certificate_lasts_as_long_as_the_authority(place):
    """It cannot be exchanged while the SuperLink runs, and a restart ends runs."""
    folder = place / "coordinator" / "transport"
    authority, own = (Certified.load(folder / f"{n}.crt", folder / f"{n}.key") for n in ("authority", "superlink"))
    assert authority.expires - own.expires < timedelta(days=2)


def test_a_certificate_is_made_anew_for_a_new_name_and_the_invitation_says_the_new_address(place):
    path = place / "coordinator.toml"
    path.write_text(path.read_text().replace("forest.example", "wood.example"))
    deployment = load_deployment(place)
    assert prepare_transport(deployment, now=now_utc())
    assert "wood.example" in front(place).names
    letter = Invitation.open(read_letter(deployment.invitation_file.read_bytes()))
    assert letter.address == "wood.example:9092"


def test_an_invitation_that_still_holds_is_not_written_again(place):
    before = (place / "invitation.jws").read_bytes()
    prepare_transport(load_deployment(place), now=now_utc() + timedelta(days=1))
    assert (place / "invitation.jws").read_bytes() == before


def test_renew_makes_another_certificate_of_the_same_authority(place):
    before, authority = front(place), (place / "coordinator/transport/authority.crt").read_bytes()
    assert say("coordinator", "renew", place)[0] == 0
    assert front(place) != before
    assert (place / "coordinator/transport/authority.crt").read_bytes() == authority


# --- holders ---------------------------------------------------------------------------------------------------------


def test_a_holder_is_registered_once_its_thumbprint_was_compared(place, letter):
    code, answer = ask("coordinator", "register", place, letter)
    assert code == 2
    assert OAK.root.public().thumbprint in answer["error"]["got"]
    code, answer = ask("coordinator", "register", place, letter, "--thumbprint", "x" * 43)
    assert (code, answer["error"]["code"]) == (3, "trust-refused")
    assert ask("coordinator", "holders", place) == (0, [])
    code, answer = ask("coordinator", "register", place, letter, "--thumbprint", OAK.root.public().thumbprint)
    assert (code, answer["holder"], answer["replaced"], answer["superlink"]) == (0, "oak", False, False)
    code, (row,) = ask("coordinator", "holders", place)
    assert (row["holder"], row["state"], row["thumbprint"]) == ("oak", "unknown", OAK.root.public().thumbprint)
    assert "Oak" in say("coordinator", "holders", place)[1]


@pytest.mark.parametrize(("answer", "code"), [("n\n", 3), ("\n", 3), ("y\n", 0)])
def test_a_person_at_a_terminal_is_shown_the_thumbprint_and_asked(place, letter, monkeypatch, answer, code):
    monkeypatch.setattr("ringfence_policy.thumbprints.is_asked", lambda: True)
    found, text = say("coordinator", "register", place, letter, fed=answer)
    assert found == code
    assert OAK.root.public().thumbprint in text
    assert len(ask("coordinator", "holders", place)[1]) == (1 if code == 0 else 0)


def test_a_new_key_of_a_known_root_needs_no_second_comparison(place, letter):
    assert ask("coordinator", "register", place, letter, "--thumbprint", OAK.root.public().thumbprint)[0] == 0
    letter.write_text(OAK.write(supernode_key(), issued_ms=2_000))
    code, answer = ask("coordinator", "register", place, letter)
    assert (code, answer["replaced"]) == (0, True)


def test_a_root_key_is_known_to_every_later_run(place, letter):
    """Registration pins it where runs look: a holder of another root is refused there too."""
    assert ask("coordinator", "register", place, letter, "--thumbprint", OAK.root.public().thumbprint)[0] == 0
    assert ask("coordinator", "remove", place, "oak")[0] == 0
    other = Correspondent.named("oak")
    letter.write_text(other.write(supernode_key(), issued_ms=2_000))
    code, answer = ask("coordinator", "register", place, letter, "--thumbprint", other.root.public().thumbprint)
    assert (code, answer["error"]["code"]) == (3, "trust-refused")


@pytest.mark.parametrize("data", [b"", b"\xff", b"a.b.c", b"x" * (2 << 20)])
def test_what_is_no_registration_is_refused(place, letter, data):
    letter.write_bytes(data)
    code, answer = ask("coordinator", "register", place, letter)
    assert (code, answer["error"]["code"]) == (3, "trust-refused")


def test_removing_a_holder_takes_its_registration_away(place, letter):
    assert ask("coordinator", "register", place, letter, "--thumbprint", OAK.root.public().thumbprint)[0] == 0
    assert ask("coordinator", "remove", place, "oak")[0] == 0
    assert ask("coordinator", "holders", place) == (0, [])
    assert ask("coordinator", "remove", place, "oak")[0] == 2


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_deployment_is_run_over_its_superlink_only_and_a_scenario_over_none(place, tmp_path):
    code, answer = ask("run", place)
    assert (code, answer["error"]["expected"]) == (2, "--superlink 127.0.0.1:9093")
    assert "coordinator start" in answer["error"]["next_step"]
    assert say("scenario", "new", tmp_path / "s")[0] == 0
    code, answer = ask("run", tmp_path / "s", "--superlink", "127.0.0.1:9093")
    assert (code, answer["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize("address", ["10.1.2.3:9093", "forest.example:9093", "127.0.0.1", "127.0.0.1:x", ""])
def test_the_superlink_is_reached_on_this_machine_alone(place, address):
    code, answer = ask("run", place, "--superlink", address)
    assert (code, answer["error"]["code"]) == (2, "usage")


def test_a_run_without_a_registered_holder_or_without_a_superlink_says_what_to_do(place, letter):
    code, answer = ask("run", place, "--superlink", "127.0.0.1:1")
    assert (code, answer["error"]["code"]) == (2, "scenario-invalid")
    assert "register" in answer["error"]["next_step"]
    assert ask("coordinator", "register", place, letter, "--thumbprint", OAK.root.public().thumbprint)[0] == 0
    code, answer = ask("run", place, "--superlink", "127.0.0.1:1")
    assert (code, answer["error"]["code"]) == (1, "deployment-fault")
    assert "coordinator start" in answer["error"]["next_step"]


def test_nothing_is_resumed_where_nothing_was_interrupted(place):
    code, answer = ask("run", place, "--superlink", "127.0.0.1:1", "--resume")
    assert (code, answer["error"]["code"]) == (2, "scenario-invalid")


@pytest.mark.parametrize("command", [("policy", "preview"), ("ledger", "show")])
def test_what_lies_with_the_holders_is_said_to_lie_there(place, command):
    code, answer = ask(*command, place)
    assert (code, answer["error"]["code"]) == (2, "usage")
    assert "lie with its data holders" in answer["error"]["summary"]


def test_decisions_of_a_deployment_are_the_coordinators_own(place):
    assert ask("decisions", place) == (0, [])


def test_commands_on_another_directory_say_how_a_deployment_is_made(tmp_path):
    for command in ("holders", "renew", "start"):
        code, answer = ask("coordinator", command, tmp_path)
        assert (code, answer["error"]["code"]) == (2, "scenario-invalid")
        assert "coordinator init" in answer["error"]["next_step"]


# --- who serves ------------------------------------------------------------------------------------------------------


def test_one_process_serves_a_deployment(place, monkeypatch):
    monkeypatch.setattr("ringfence_server.coordinator_service._PATIENCE_SECONDS", 0.3)
    deployment = load_deployment(place)
    assert not is_serving(deployment)
    with _serving(deployment):
        assert is_serving(deployment)
        with pytest.raises(ScenarioBusy, match="another process"), _serving(deployment):
            raise AssertionError("two at once")
    assert not is_serving(deployment)
