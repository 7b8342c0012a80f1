"""The Merkle tree against the RFCs' own values and against another implementation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from ringfence_policy import merkle

# The eight entries, roots and proofs that certificate-transparency implementations share as known answers
# (certificate-transparency-go, merkletree tests; the roots are those of RFC 6962's tree over these entries).
ENTRIES = [
    bytes.fromhex(text)
    for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]


def numbered(count):
    return [merkle.leaf_hash(b"record %d" % number) for number in range(count)]


def test_the_empty_tree_has_the_root_of_rfc_6962():
    assert merkle.root_of([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_match_the_known_answers(size):
    assert merkle.root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_inclusion_and_consistency_proofs_match_the_known_answers():
    hash_of = merkle.leaf_hashes(LEAVES)
    assert [part.hex() for part in merkle.inclusion_proof(5, 8, hash_of)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [part.hex() for part in merkle.consistency_proof(6, 8, hash_of)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_roots_equal_those_of_another_implementation_up_to_70_leaves():
    tree = InmemoryTree(algorithm="sha256")
    leaves = []
    for number in range(70):
        tree.append_entry(b"record %d" % number)
        leaves.append(merkle.leaf_hash(b"record %d" % number))
        assert merkle.root_of(leaves) == tree.get_root()


def test_every_true_proof_holds_and_every_single_forgery_of_it_fails_up_to_20_leaves():
    forged = merkle.leaf_hash(b"forged")
    for size in range(1, 21):
        leaves = numbered(size)
        hash_of, root = merkle.leaf_hashes(leaves), merkle.root_of(leaves)
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, hash_of)
            known = {"index": index, "size": size, "leaf": leaves[index], "proof": proof, "root": root}
            assert merkle.verify_inclusion(**known)
            wrong = [
                {"leaf": forged}, {"root": forged}, {"index": index + 1}, {"index": size}, {"index": -1},
                {"proof": [*proof, forged]},
                *({"proof": [*proof[:place], *proof[place + 1 :]]} for place in range(len(proof))),
                *({"proof": [*proof[:place], forged, *proof[place + 1 :]]} for place in range(len(proof))),
            ]  # fmt: skip
            assert not any(merkle.verify_inclusion(**{**known, **change}) for change in wrong)


def test_every_rewritten_reordered_or_dropped_prefix_fails_up_to_20_leaves():
    forged = merkle.leaf_hash(b"forged")
    for new_size in range(1, 21):
        leaves = numbered(new_size)
        hash_of, new_root = merkle.leaf_hashes(leaves), merkle.root_of(leaves)
        for old_size in range(new_size + 1):
            proof = merkle.consistency_proof(old_size, new_size, hash_of)
            known = {"old_size": old_size, "new_size": new_size, "new_root": new_root, "proof": proof}
            assert merkle.verify_consistency(old_root=merkle.root_of(leaves[:old_size]), **known)
            others = [
                merkle.root_of([*leaves[:place], forged, *leaves[place + 1 : old_size]]) for place in range(old_size)
            ]
            others += [merkle.root_of(leaves[1:old_size])] if old_size else [forged]
            others += [merkle.root_of(leaves[: old_size - 2] + leaves[old_size - 2 : old_size][::-1])] * (old_size > 1)
            assert not any(merkle.verify_consistency(old_root=other, **known) for other in others)
            for place in range(len(proof)):
                broken = {**known, "proof": [*proof[:place], forged, *proof[place + 1 :]]}
                assert not merkle.verify_consistency(old_root=merkle.root_of(leaves[:old_size]), **broken)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8), st.integers(-2, 40), st.integers(-2, 40))
def test_random_proofs_never_verify_a_forged_leaf_or_prefix(proof, first, second):
    leaves = numbered(33)
    assert not merkle.verify_inclusion(
        index=first, size=second, leaf=merkle.leaf_hash(b"forged"), proof=proof, root=merkle.root_of(leaves)
    )
    assert not merkle.verify_consistency(
        old_size=first,
        new_size=second,
        old_root=merkle.leaf_hash(b"forged"),
        new_root=merkle.root_of(leaves),
        proof=proof,
    )


def test_values_that_are_not_hashes_are_refused_not_raised():
    good = merkle.leaf_hash(b"")
    assert not merkle.verify_inclusion(index=0, size=1, leaf=b"short", proof=[], root=good)
    assert not merkle.verify_inclusion(index=0, size=2, leaf=good, proof=["text"], root=good)
    assert not merkle.verify_consistency(old_size=1, new_size=2, old_root=good, new_root=good, proof=[b""])


def test_a_leaf_is_never_read_as_an_inner_node():
    left, right = numbered(2)
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_prefix_roots_in_one_pass_equal_the_roots_one_by_one():
    leaves = numbered(40)
    found = merkle.prefix_roots(leaves, [0, 1, 7, 8, 40, 41, -1])
    assert found == {size: merkle.root_of(leaves[:size]) for size in (0, 1, 7, 8, 40)}


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_a_proof_for_a_leaf_that_is_not_there_is_an_error(index, size):
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_proof(index, size, merkle.leaf_hashes(numbered(size)))


@pytest.mark.parametrize(("old", "new"), [(4, 3), (-1, 3)])
def test_a_consistency_proof_the_wrong_way_round_is_an_error(old, new):
    with pytest.raises(ValueError, match="cannot be a prefix"):
        merkle.consistency_proof(old, new, merkle.leaf_hashes(numbered(3)))
