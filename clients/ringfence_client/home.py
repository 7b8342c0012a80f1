"""Where everything of one data holder lies on its own machine.

<holder>/holder.toml policy.toml data.csv|data.parquet     what people write
<holder>/state/keys/        root, policy, status and node keys, mode 0600 (in real use the root key stays offline)
<holder>/state/papers/      signed key list, policies and status; the coordinator's invitation
<holder>/state/relay/       the key of the SuperNode, the one thing of the state that its process reads
<holder>/state/ledger.db    privacy ledger, evidence log, trust memory and outbox, one SQLite file
<holder>/state/runs/        what each run was shown: plan, mechanism
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ringfence_policy.holder import HolderProfile
from ringfence_policy.policy import UsagePolicy, read_policy
from ringfence_policy.strict_toml import read_toml


@dataclass(frozen=True)
class HolderHome:
    """One data holder's directory."""

    directory: Path

    @cached_property
    def profile(self) -> HolderProfile:
        """The holder as holder.toml describes it."""
        return read_toml(self.directory / "holder.toml", HolderProfile)

    def read_policy(self) -> UsagePolicy:
        """The usage policy as policy.toml says it now, signed or not."""
        return read_policy(self.policy_file)

    @cached_property
    def state(self) -> Path:
        """What Ringfence keeps for the holder."""
        return self.directory / "state"

    @cached_property
    def keys(self) -> Path:
        """Private keys."""
        return self.state / "keys"

    @cached_property
    def papers(self) -> Path:
        """Signed documents, public."""
        return self.state / "papers"

    @cached_property
    def database(self) -> Path:
        """The ledger and the evidence log."""
        return self.state / "ledger.db"

    @cached_property
    def key_list(self) -> Path:
        """The signed key list."""
        return self.papers / "keys.jws"

    @cached_property
    def signed_policy(self) -> Path:
        """The usage policy as it was signed last."""
        return self.papers / "policy.jws"

    @cached_property
    def policy_file(self) -> Path:
        """The usage policy as its data officer writes it."""
        return self.directory / "policy.toml"

    @cached_property
    def status(self) -> Path:
        """The newest signed status."""
        return self.papers / "status.jws"

    @cached_property
    def status_number(self) -> Path:
        """The number of the status that was signed here last."""
        return self.keys / "status.number"

    @cached_property
    def root_key(self) -> Path:
        """The root private key, where it does not lie offline."""
        return self.keys / "root.jwk"

    @cached_property
    def root(self) -> Path:
        """The root public key."""
        return self.papers / "root.jwk"

    @cached_property
    def supernode_key(self) -> Path:
        """The SuperNode's private key, apart from `keys`: its process may read this and nothing there."""
        return self.state / "relay" / "supernode.key"

    @cached_property
    def coordinator(self) -> Path:
        """The invitation of the coordinator that this holder joined."""
        return self.papers / "coordinator.jws"

    @cached_property
    def presence(self) -> Path:
        """The file that every open node of this holder holds a lock on."""
        return self.state / "node.lock"

    @property
    def is_set_up(self) -> bool:
        """Whether keys were made and a policy was signed here."""
        return self.key_list.exists()

    @property
    def schema_file(self) -> Path:
        """The schema as people wrote it: the holder's own, or the one of the scenario it lies in."""
        own, around = self.directory / "schema.toml", self.directory.resolve().parent
        shared = around.parent / "schema.toml"
        return shared if around.name == "holders" and shared.exists() and not own.exists() else own

    @cached_property
    def peers(self) -> Path:
        """Root keys of the other holders that this one knows."""
        return self.papers / "peers.json"

    @cached_property
    def agreed_schema(self) -> Path:
        """The digest of the schema that the data officer agreed to. A plan with another one is never read data by."""
        return self.papers / "schema.digest"

    def run_file(self, run_id: str) -> Path:
        """What this holder was shown for a run."""
        return self.state / "runs" / f"{run_id}.json"
