"""Registered data holders: who may connect, by which SuperNode key, and the root key that each is pinned to."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ringfence_policy import canonical
from ringfence_policy.durable import write_durably
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.letters import Registration, read_letter
from ringfence_policy.protocol import HolderCard
from ringfence_policy.strict_toml import Identifier
from ringfence_server.coordinator import Coordinator

_WITHDRAWN = "withdrawn.json"
_HOLDER_ID: TypeAdapter[str] = TypeAdapter(Identifier)


@dataclass(frozen=True)
class Registry:
    """The registrations of a deployment, one signed letter for each holder.

    Attributes:
        directory: Where the letters lie, as <holder id>.jws; beside them withdrawn.json, the SuperNode keys that are
            never taken again.
    """

    directory: Path

    def registrations(self) -> dict[str, Registration]:
        """Every registered holder's letter, verified anew.

        Raises:
            TrustRefused: A letter was changed, or lies under another holder's name.
        """
        found = {}
        for path in sorted(self.directory.glob("*.jws")):
            letter = Registration.open(read_letter(path.read_bytes()))
            if letter.card.holder_id != path.stem:
                raise TrustRefused(
                    "a registration lies under another name", expected=letter.card.holder_id, where=str(path)
                )
            found[path.stem] = letter
        return found

    def cards(self) -> dict[str, HolderCard]:
        """Every registered holder's card."""
        return {holder_id: letter.card for holder_id, letter in self.registrations().items()}

    def keys(self) -> dict[str, str]:
        """Which holder a SuperNode's key speaks for: the holder's id by the key in PEM."""
        return {letter.flower_key: holder_id for holder_id, letter in self.registrations().items()}

    def state(self) -> frozenset[tuple[str, int, int]]:
        """Something that is equal for as long as no registration comes or goes."""
        # Letters are replaced whole, so that any change shows in the names, numbers or times of the files.
        return frozenset(
            (entry.name, (state := entry.stat()).st_ino, state.st_mtime_ns)
            for entry in os.scandir(self.directory)
            if entry.name.endswith(".jws") and not entry.name.startswith(".")
        )

    def check(self, letter: Registration) -> Registration | None:
        """Whether a letter, in itself genuine, may be kept beside the others.

        Returns:
            The letter that it replaces, if any.

        Raises:
            TrustRefused: The holder is known under another root key or by a newer letter, or the SuperNode's key is
                another holder's or was withdrawn.
        """
        holder_id = letter.card.holder_id
        try:
            _HOLDER_ID.validate_python(holder_id)
        except ValidationError:
            raise TrustRefused(
                "a holder's id has another form", expected="as in holder.toml", got=holder_id[:80]
            ) from None
        known = self.registrations()
        before = known.get(holder_id)
        if before is not None and before.root.raw != letter.root.raw:
            raise _other_root(holder_id, before, letter)
        if before is not None and letter.issued_ms < before.issued_ms:
            raise TrustRefused(
                "a newer registration of this holder is kept already",
                expected=f"issued after {before.issued_ms} ms",
                got=f"issued at {letter.issued_ms} ms",
                next_step=f"ask {holder_id} for its newest registration",
            )
        if before is not None and letter.issued_ms == before.issued_ms and letter != before:
            raise TrustRefused("two different registrations of one holder were issued at one moment", got=holder_id)
        other = next((one for one, kept in known.items() if kept.flower_key == letter.flower_key), holder_id)
        if other != holder_id:
            raise TrustRefused(
                "the SuperNode's key is another holder's",
                expected=f"a key that {holder_id} made for itself",
                got=f"the key of {other}",
                next_step="each holder makes its own: `ringfence-node init` does",
            )
        gone = self.withdrawn().get(canonical.digest_bytes(letter.flower_key.encode()))
        if gone is not None:
            raise TrustRefused(
                "the SuperNode's key was withdrawn",
                expected="a key that was never withdrawn",
                got=f"a key that spoke for {gone}",
                next_step="the holder makes a new SuperNode key and sends a new registration",
            )
        return before

    def keep(self, letter: Registration, token: str, coordinator: Coordinator) -> None:
        """Keep a holder's registration, and pin the holder to its root key for good.

        Args:
            letter: The letter, read from `token`.
            token: The letter as it came.
            coordinator: Remembers root keys.

        Raises:
            TrustRefused: See `check`, and where an earlier run knew the holder under another root key.
        """
        before = self.check(letter)
        coordinator.store(letter.card)
        coordinator.save()
        if before is not None and before.flower_key != letter.flower_key:
            self._withdraw(before)
        write_durably(self.directory / f"{letter.card.holder_id}.jws", token.encode())

    def remove(self, holder_id: str) -> Registration:
        """Withdraw a holder's registration. Its root key stays pinned, and its SuperNode's key is never taken again.

        Returns:
            The registration that was.

        Raises:
            UsageError: No such holder is registered.
        """
        known = self.registrations()
        if holder_id not in known:
            raise UsageError(
                "no such data holder is registered", expected=" or ".join(known) or "nobody is", got=holder_id
            )
        self._withdraw(known[holder_id])
        (self.directory / f"{holder_id}.jws").unlink()
        return known[holder_id]

    def withdrawn(self) -> Mapping[str, str]:
        """Withdrawn SuperNode keys: the holder that each spoke for, by the key's digest."""
        path = self.directory / _WITHDRAWN
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _withdraw(self, letter: Registration) -> None:
        # The key is withdrawn before the letter goes: a crash between the two never leaves a key to be taken again.
        digest = canonical.digest_bytes(letter.flower_key.encode())
        gone = {**self.withdrawn(), digest: letter.card.holder_id}
        write_durably(self.directory / _WITHDRAWN, json.dumps(gone, indent=1, sort_keys=True).encode())


class KeyTable:
    """Who may connect right now, read again when a registration comes or goes.

    Args:
        registry: The registrations.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: frozenset[tuple[str, int, int]] | None = None
        self._keys: dict[str, str] = {}

    def holder_of(self, key: str) -> str | None:
        """The holder that a SuperNode's key speaks for; None for everybody else."""
        now = self._registry.state()
        if now != self._seen:
            self._keys = self._registry.keys()
            self._seen = now
        return self._keys.get(key)


def _other_root(holder_id: str, before: Registration, letter: Registration) -> TrustRefused:
    return TrustRefused(
        f"{holder_id} is registered under another root key",
        expected=before.root.thumbprint,
        got=letter.root.thumbprint,
        next_step="find out by telephone which key is right; a holder's root key never changes under one id",
    )
