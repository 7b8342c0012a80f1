"""RFC 6962 / RFC 9162 Merkle tree hashing and proofs, as pure functions.

A tree over `size` leaves is described by ranges of leaves. Every range that occurs in a root or a proof starts at a
multiple of a power of two at least its own length, so it splits into complete subtrees (`subtrees`); a log that stores
the hash of each complete subtree therefore answers every question in O(log n) lookups. Functions that take a `HashOf`
need only those; `leaf_hashes` adapts a plain list.

Reference: RFC 9162 section 2.1 (the same tree as RFC 6962 section 2.1).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

HashOf = Callable[[int, int], bytes]
"""(level, position) -> hash of the complete subtree over leaves [position * 2**level, (position + 1) * 2**level)."""


def leaf_hash(data: bytes) -> bytes:
    """Hash one entry. The prefix 0x00 keeps an entry from ever being read as an inner node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent, with prefix 0x01."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def leaf_hashes(leaves: Sequence[bytes]) -> HashOf:
    """Read subtree hashes out of a plain sequence of leaf hashes, for trees small enough to hold in memory."""

    @cache  # each subtree is hashed once, however many proofs are asked for
    def hash_of(level: int, position: int) -> bytes:
        if level == 0:
            return leaves[position]
        return node_hash(hash_of(level - 1, 2 * position), hash_of(level - 1, 2 * position + 1))

    return hash_of


def completed_by(index: int) -> Iterator[tuple[int, int]]:
    """The subtrees that appending leaf number `index` completes above it, lowest first, as (level, position)."""
    level, position = 0, index
    while position & 1:
        level, position = level + 1, position >> 1
        yield level, position


def subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """Split an aligned range of leaves into complete subtrees, largest first, as (level, position)."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def range_hash(start: int, end: int, hash_of: HashOf) -> bytes:
    """The tree hash of an aligned range of leaves; of no leaves, the hash of nothing."""
    return fold([hash_of(level, position) for level, position in subtrees(start, end)])


def root(size: int, hash_of: HashOf) -> bytes:
    """The tree hash of the first `size` leaves; of no leaves, the hash of nothing."""
    return range_hash(0, size, hash_of)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The tree hash of a plain sequence of leaf hashes."""
    return root(len(leaves), leaf_hashes(leaves))


def inclusion_proof(index: int, size: int, hash_of: HashOf) -> list[bytes]:
    """Prove that leaf number `index` is in the tree of `size` leaves (RFC 9162 section 2.1.3.1).

    Raises:
        ValueError: There is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    start, end, ranges = 0, size, []
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return [range_hash(low, high, hash_of) for low, high in reversed(ranges)]


def consistency_proof(old_size: int, new_size: int, hash_of: HashOf) -> list[bytes]:
    """Prove that the tree of `old_size` leaves is a prefix of that of `new_size` (RFC 9162 section 2.1.4.1).

    The empty tree is a prefix of every tree and every tree of itself; both proofs are empty.

    Raises:
        ValueError: Sizes are negative or the wrong way round.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {old_size} cannot be a prefix of a tree of {new_size}")
    if old_size in (0, new_size):
        return []
    start, end, whole, ranges = 0, new_size, True, []
    while old_size != end:
        middle = start + _largest_power_below(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:  # the old tree's own root is known to the verifier and left out of the proof
        ranges.append((start, end))
    return [range_hash(low, high, hash_of) for low, high in reversed(ranges)]


def verify_inclusion(*, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf` (a leaf hash) is number `index` of `size` under `root` (section 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes([leaf, root, *proof]):
        return False
    position, last, running = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            running = node_hash(sibling, running)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            running = node_hash(running, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and running == root


def verify_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether `proof` shows that the old tree is a prefix of the new one (section 2.1.4.2)."""
    if not 0 <= old_size <= new_size or not _are_hashes([old_root, new_root, *proof]):
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT and (new_size > 0 or new_root == EMPTY_ROOT)
    if old_size == new_size:
        return not proof and old_root == new_root
    if not proof:
        return False
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_running = new_running = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_running, new_running = node_hash(sibling, old_running), node_hash(sibling, new_running)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new_running = node_hash(new_running, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old_running == old_root and new_running == new_root


def prefix_roots(leaves: Sequence[bytes], sizes: Sequence[int]) -> dict[int, bytes]:
    """The roots of several prefixes of a sequence of leaf hashes, in one pass over the leaves.

    Sizes beyond the sequence are left out of the answer.
    """
    wanted, roots = set(sizes), {}
    edge: list[tuple[int, bytes]] = []  # the complete subtrees of the prefix read so far, largest first
    for count in range(len(leaves) + 1):
        if count:
            level, running = 0, leaves[count - 1]
            while edge and edge[-1][0] == level:
                running = node_hash(edge.pop()[1], running)
                level += 1
            edge.append((level, running))
        if count in wanted:
            roots[count] = fold([value for _, value in edge])
    return roots


def fold(hashes: Sequence[bytes]) -> bytes:
    """The tree hash over complete subtrees that follow each other, largest first, as `subtrees` lists them."""
    if not hashes:
        return EMPTY_ROOT
    *left, last = hashes
    for sibling in reversed(left):
        last = node_hash(sibling, last)
    return last


def _largest_power_below(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def _are_hashes(values: Sequence[bytes]) -> bool:
    return all(isinstance(value, bytes) and len(value) == HASH_BYTES for value in values)
