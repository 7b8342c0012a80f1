"""A registration binds a holder's id, its root key and its SuperNode's key, and nothing loosens that later."""

import json

import pytest
from letters import Correspondent, pem, supernode_key

from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.letters import Registration
from ringfence_server.coordinator import Coordinator
from ringfence_server.registry import KeyTable, Registry

OAK = Correspondent.named("oak")


@pytest.fixture
def place(tmp_path):
    """A registry, and how a letter gets into it."""
    holders = tmp_path / "coordinator" / "holders"
    coordinator = Coordinator(tmp_path / "coordinator", coordinator_id="tree-consortium")
    holders.mkdir()
    registry = Registry(holders)
    yield registry, lambda token: registry.keep(Registration.open(token), token, coordinator)
    coordinator.close()


def test_a_registered_holder_is_known_by_its_supernodes_key(place):
    registry, keep = place
    key = supernode_key()
    keep(OAK.write(key))
    assert registry.keys() == {pem(key): "oak"}
    assert registry.cards()["oak"].root == OAK.root.public().jwk


def test_a_newer_letter_of_the_same_root_replaces_key_and_card(place):
    registry, keep = place
    old, new = supernode_key(), supernode_key()
    keep(OAK.write(old))
    keep(OAK.write(new, issued_ms=2_000, weight=200))
    assert registry.keys() == {pem(new): "oak"}
    assert registry.cards()["oak"].weight == 200


def test_the_same_letter_twice_changes_nothing(place):
    registry, keep = place
    token = OAK.write(supernode_key())
    keep(token)
    keep(token)
    assert registry.withdrawn() == {}


def test_a_key_that_was_replaced_is_never_taken_again(place):
    _, keep = place
    old = supernode_key()
    keep(OAK.write(old))
    keep(OAK.write(supernode_key(), issued_ms=2_000))
    with pytest.raises(TrustRefused, match="was withdrawn"):
        keep(OAK.write(old, issued_ms=3_000))


def test_an_older_letter_is_refused_after_a_newer_one(place):
    _, keep = place
    keep(OAK.write(supernode_key(), issued_ms=2_000))
    with pytest.raises(TrustRefused, match="newer registration"):
        keep(OAK.write(supernode_key(), issued_ms=1_000))


def test_two_letters_of_one_moment_are_refused(place):
    _, keep = place
    keep(OAK.write(supernode_key()))
    with pytest.raises(TrustRefused, match="one moment"):
        keep(OAK.write(supernode_key()))


def test_a_holder_that_is_known_under_another_root_key_is_refused(place):
    registry, keep = place
    keep(OAK.write(supernode_key()))
    with pytest.raises(TrustRefused, match="another root key"):
        keep(Correspondent.named("oak").write(supernode_key(), issued_ms=2_000))
    assert registry.cards()["oak"].root == OAK.root.public().jwk


def test_a_removed_holder_comes_back_under_the_same_root_key_and_a_new_supernode_key_only(place):
    registry, keep = place
    old, new = supernode_key(), supernode_key()
    keep(OAK.write(old))
    registry.remove("oak")
    assert registry.keys() == {}
    with pytest.raises(TrustRefused, match="another root key"):
        keep(Correspondent.named("oak").write(new, issued_ms=2_000))
    with pytest.raises(TrustRefused, match="was withdrawn"):
        keep(OAK.write(old, issued_ms=2_000))
    keep(OAK.write(new, issued_ms=2_000))
    assert registry.keys() == {pem(new): "oak"}


def test_a_supernodes_key_speaks_for_one_holder_only(place):
    _, keep = place
    key = supernode_key()
    keep(OAK.write(key))
    with pytest.raises(TrustRefused, match="another holder's"):
        keep(Correspondent.named("elm").write(key))


@pytest.mark.parametrize("name", ["../oak", "a/b", "OAK", "x", "", "oak\n"])
def test_an_id_that_is_no_holders_is_never_a_file_name(place, name):
    registry, keep = place
    with pytest.raises(TrustRefused, match="another form"):
        keep(Correspondent(name, OAK.root).write(supernode_key()))
    assert list(registry.directory.parent.glob("**/*.jws")) == [registry.directory.parent / "keys.jws"]


def test_a_letter_that_was_changed_or_moved_on_disk_stops_everything(place):
    registry, keep = place
    token = OAK.write(supernode_key())
    keep(token)
    (registry.directory / "elm.jws").write_text(token)
    with pytest.raises(TrustRefused, match="another name"):
        registry.keys()
    (registry.directory / "elm.jws").unlink()
    (registry.directory / "oak.jws").write_text(token[:-4] + "AAAA")
    with pytest.raises(TrustRefused):
        registry.keys()


def test_removing_nobody_says_who_is_there(place):
    registry, keep = place
    keep(OAK.write(supernode_key()))
    with pytest.raises(UsageError, match="oak"):
        registry.remove("elm")


def test_the_table_of_keys_follows_registrations_and_removals_at_once(place):
    registry, keep = place
    table, key, other = KeyTable(registry), supernode_key(), supernode_key()
    assert table.holder_of(pem(key)) is None
    keep(OAK.write(key))
    assert table.holder_of(pem(key)) == "oak"
    keep(OAK.write(other, issued_ms=2_000))
    assert (table.holder_of(pem(key)), table.holder_of(pem(other))) == (None, "oak")
    registry.remove("oak")
    assert table.holder_of(pem(other)) is None


def test_withdrawn_keys_are_kept_as_digests(place):
    registry, keep = place
    keep(OAK.write(supernode_key()))
    registry.remove("oak")
    (digest,) = json.loads((registry.directory / "withdrawn.json").read_text())
    assert digest.startswith("sha256:")
