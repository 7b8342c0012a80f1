"""A deployment directory: what a coordinator of holders on other machines writes, makes and keeps, and where it lies.

<deployment>/plan.toml  plan-*.toml  schema.toml     as in a scenario
<deployment>/coordinator.toml                        where this coordinator is reached
<deployment>/invitation.jws                          its letter to data holders
<deployment>/coordinator/                            keys, log and registrations; transport/ and flower/
<deployment>/runs/<run id>/                          as in a scenario
"""

import ipaddress
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import Field, field_validator

from ringfence_policy.durable import write_durably
from ringfence_policy.errors import ScenarioInvalid, TrustRefused, UsageError
from ringfence_policy.identity import PublicKey, SigningKey
from ringfence_policy.letters import Invitation, read_letter
from ringfence_policy.plan import PlanFile
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.shell_words import typed
from ringfence_policy.strict_toml import Identifier, ListOf, StrictDocument, Text, read_toml, refusal
from ringfence_policy.transport_keys import (
    AUTHORITY_DAYS,
    CERTIFICATE_DAYS,
    Certified,
    make_authority,
    make_server_certificate,
)
from ringfence_server.coordinator import Coordinator

SETTINGS = "coordinator.toml"
LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = (LOOPBACK, "localhost")
_RENEWED_BEFORE = timedelta(days=30)
_READABLE = 0o644
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)


class CoordinatorFile(StrictDocument):
    """coordinator.toml: who coordinates, and where its front and its SuperLink listen.

    Attributes:
        coordinator: The organisation, as plans and policies name it.
        names: Host names and addresses under which data holders reach the front; the first stands in invitations.
        listen: The address that the front listens on.
        port: The front's port, on `listen`.
        superlink_port: The SuperLink's port, on the loopback address alone.
        database: The SuperLink's own database, SQLite, relative to the deployment.
    """

    coordinator: Identifier
    names: ListOf[Text]
    listen: Text = "0.0.0.0"  # noqa: S104 -- the front is the one thing here that others are meant to reach
    port: int = Field(default=9092, ge=1, le=65535)
    superlink_port: int = Field(default=9093, ge=1, le=65535)
    database: Text = "coordinator/transport/superlink.db"

    @field_validator("names")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(_is_host(one) for one in value):
            raise refusal('at least one host name or address, such as "forest.example" or "10.1.2.3", without a port')
        return value

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not _is_address(value):
            raise refusal('an address of this machine, such as "0.0.0.0" for all, or "10.1.2.3"')
        return value


@dataclass(frozen=True)
class Deployment:
    """Where everything of one deployment lies."""

    directory: Path
    settings: CoordinatorFile

    @property
    def state(self) -> Path:
        """What the coordinator keeps: keys, log, registrations."""
        return self.directory / "coordinator"

    @property
    def transport(self) -> Path:
        """Authority, certificates, the SuperLink's database, and who serves."""
        return self.state / "transport"

    @property
    def holders(self) -> Path:
        """The registrations."""
        return self.state / "holders"

    @property
    def authority_file(self) -> Path:
        """The authority's certificate, which invitations carry."""
        return self.transport / "authority.crt"

    @property
    def flower_home(self) -> Path:
        """What Flower keeps for itself."""
        return self.state / "flower"

    @property
    def database(self) -> Path:
        """The SuperLink's database."""
        return (self.directory / self.settings.database).resolve()

    @property
    def invitation_file(self) -> Path:
        """The letter to data holders."""
        return self.directory / "invitation.jws"

    @property
    def control_address(self) -> str:
        """Where the SuperLink answers this machine."""
        return f"{LOOPBACK}:{self.settings.superlink_port}"

    @property
    def address(self) -> str:
        """Where data holders reach the front, as invitations say it."""
        name = self.settings.names[0]
        return f"[{name}]:{self.settings.port}" if ":" in name else f"{name}:{self.settings.port}"

    def coordinator(self) -> Coordinator:
        """Open the coordinator's keys and log."""
        return Coordinator(self.state, coordinator_id=self.settings.coordinator)

    def read_plan(self, path: Path | None = None) -> PlanFile:
        """The plan that is to be run.

        Raises:
            ScenarioInvalid: There is none yet, or it is another coordinator's.
            DocumentInvalid: It does not say what it must.
        """
        plan = read_toml(self._must_be_there(path or self.directory / "plan.toml"), PlanFile)
        if plan.coordinator != self.settings.coordinator:
            raise ScenarioInvalid(
                "the plan is for another coordinator",
                expected=f'coordinator = "{self.settings.coordinator}"',
                got=f'coordinator = "{plan.coordinator}"',
                where=str(path or self.directory / "plan.toml"),
            )
        return plan

    def read_schema(self) -> DatasetSchema:
        """What every holder's data looks like.

        Raises:
            ScenarioInvalid: There is no schema yet.
            DocumentInvalid: It does not say what it must.
        """
        return read_toml(self._must_be_there(self.directory / "schema.toml"), DatasetSchema)

    def _must_be_there(self, path: Path) -> Path:
        if path.is_file():
            return path
        raise ScenarioInvalid(
            "a deployment needs a plan and a schema before it can run",
            expected=path.name,
            where=str(path),
            next_step="write it, or copy one: `ringfence scenario new OTHER` makes a directory with both",
        )


def is_deployment(directory: Path) -> bool:
    """Whether a directory was made a deployment."""
    return (directory / SETTINGS).is_file()


def load_deployment(directory: Path) -> Deployment:
    """Read a deployment directory.

    Raises:
        ScenarioInvalid: It is none.
        DocumentInvalid: coordinator.toml does not say what it must.
    """
    if not is_deployment(directory):
        raise ScenarioInvalid(
            "this is no deployment",
            expected=f"a {SETTINGS}",
            where=str(directory),
            next_step=f"`ringfence coordinator init {typed(directory)} --name HOST` makes one",
        )
    return Deployment(directory.resolve(), read_toml(directory / SETTINGS, CoordinatorFile))


def init_deployment(directory: Path, settings: CoordinatorFile, *, source: Path | None, now: datetime) -> Deployment:
    """Make a directory a deployment: settings, keys, authority, certificate and invitation. Uses no data.

    Args:
        directory: A new directory, or one with plan.toml and schema.toml in it.
        settings: What stands in its coordinator.toml.
        source: A scenario whose plans and schema are copied; None where they are there, or come later.
        now: When.

    Raises:
        ScenarioInvalid: It is a deployment already, or a file to be copied is there already.
    """
    if is_deployment(directory):
        raise ScenarioInvalid(
            "this is a deployment already",
            expected="a directory without one",
            where=str(directory / SETTINGS),
            next_step="change its coordinator.toml; `ringfence coordinator start` then writes a new invitation",
        )
    directory.mkdir(parents=True, exist_ok=True)
    if source is not None:
        _copy_papers(source, directory)
    deployment = Deployment(directory.resolve(), settings)
    deployment.coordinator().close()
    deployment.holders.mkdir(exist_ok=True, mode=0o700)
    prepare_transport(deployment, now=now)
    # Last: a directory is a deployment once all of it is there.
    write_durably(directory / SETTINGS, _settings_text(settings).encode(), mode=_READABLE)
    return deployment


def prepare_transport(deployment: Deployment, *, now: datetime, renew: bool = False) -> bool:
    """Make what is missing or runs out of authority, certificates and invitation.

    Args:
        deployment: The deployment.
        now: When.
        renew: Make a new certificate for the front even where the old one still holds.

    Returns:
        Whether the front's certificate is another one now.
    """
    authority = _kept(deployment.transport / "authority", lambda _: True)
    if authority is None:
        authority = make_authority(deployment.settings.coordinator, now=now)
        authority.save(deployment.authority_file, deployment.transport / "authority.key")
    # The SuperLink's, which nobody sees but this machine, lasts as long as the authority: to show another one it would
    # have to be started anew, and that ends runs.
    certificates = {
        "superlink": (_LOOPBACK_NAMES, AUTHORITY_DAYS),
        "front": ((*deployment.settings.names, *_LOOPBACK_NAMES), CERTIFICATE_DAYS),
    }
    changed = False
    for name, (wanted, days) in certificates.items():
        if _kept(deployment.transport / name, _holds(authority, wanted, now=now)) is None or (
            renew and name == "front"
        ):
            made = make_server_certificate(authority, wanted, now=now, days=days)
            made.save(deployment.transport / f"{name}.crt", deployment.transport / f"{name}.key")
            changed = changed or name == "front"
    _write_invitation(deployment, authority, now=now)
    return changed


def _holds(authority: Certified, names: tuple[str, ...], *, now: datetime) -> Callable[[Certified], bool]:
    wanted = {str(ipaddress.ip_address(one)) if _is_address(one) else one for one in names}
    return lambda kept: kept.is_from(authority) and kept.names == wanted and kept.expires - now > _RENEWED_BEFORE


def _kept(path: Path, is_good: Callable[[Certified], bool]) -> Certified | None:
    try:
        found = Certified.load(path.with_suffix(".crt"), path.with_suffix(".key"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrustRefused(
            "a certificate or its key cannot be read",
            got=type(error).__name__,
            where=str(path.with_suffix(".crt")),
            next_step="restore both files from a backup; a certificate of the front can also be deleted and made anew",
        ) from None
    return found if is_good(found) else None


def _write_invitation(deployment: Deployment, authority: Certified, *, now: datetime) -> None:
    """Write the letter to holders, unless the one that is there says the same."""
    root = PublicKey.from_jwk(json.loads((deployment.state / "root.jwk").read_text()))
    letter = Invitation(
        coordinator=deployment.settings.coordinator,
        root_jwk=root.jwk,
        address=deployment.address,
        authority=authority.certificate,
        issued_ms=int(now.timestamp() * 1000),
    )
    path = deployment.invitation_file
    if path.exists():
        try:
            before = Invitation.open(read_letter(path.read_bytes()))
        except TrustRefused:
            before = None
        if before is not None and before.model_copy(update={"issued_ms": letter.issued_ms}) == letter:
            return
    key = SigningKey.load(deployment.state / "root.key.jwk")
    write_durably(path, letter.sign(key).encode(), mode=_READABLE)


def _copy_papers(source: Path, target: Path) -> None:
    found = [*sorted(source.glob("plan*.toml")), source / "schema.toml"]
    there = [path.name for path in found if (target / path.name).exists()]
    if there:
        raise ScenarioInvalid(
            "the directory has its own plan or schema",
            got=", ".join(there),
            where=str(target),
            next_step="leave out --from: nothing is overwritten",
        )
    for path in found:
        shutil.copyfile(path, target / path.name)


def _settings_text(settings: CoordinatorFile) -> str:
    names = ", ".join(json.dumps(one) for one in settings.names)
    return (
        "# Where this coordinator is reached. After a change: ringfence coordinator start\n"
        f"coordinator = {json.dumps(settings.coordinator)}\n"
        f"names = [{names}]\n"
        f"listen = {json.dumps(settings.listen)}\n"
        f"port = {settings.port}\n"
        f"superlink_port = {settings.superlink_port}\n"
        f"database = {json.dumps(settings.database)}\n"
    )


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_host(value: str) -> bool:
    return _is_address(value) or bool(_HOST_NAME.fullmatch(value))


def settings_of(
    *, coordinator: str | None, directory: Path, source: Path | None, names: str, listen: str, port: int,
    superlink_port: int,
) -> CoordinatorFile:  # fmt: skip
    """The settings that the options of `ringfence coordinator init` amount to.

    Raises:
        UsageError: Nothing says who coordinates, or an option is wrong.
        DocumentInvalid: A plan that is there cannot be read.
    """
    plan = (directory if source is None else source) / "plan.toml"
    named = read_toml(plan, PlanFile).coordinator if plan.is_file() else None
    if coordinator is None and named is None:
        raise UsageError(
            "nothing says who coordinates",
            expected=f"a plan.toml in {directory}, --from NAME, or --id ID",
            next_step="--id is the organisation as plans and policies will name it",
        )
    if coordinator is not None and named not in (None, coordinator):
        raise UsageError("the plan names another coordinator", expected=f"--id {named}", got=f"--id {coordinator}")
    try:
        return CoordinatorFile(
            coordinator=str(coordinator or named),
            names=tuple(one.strip() for one in names.split(",")),
            listen=listen,
            port=port,
            superlink_port=superlink_port,
        )
    except ValueError as error:
        words = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in getattr(error, "errors", list)())
        raise UsageError("an option cannot be used", expected=words or str(error)) from None


def now_utc() -> datetime:
    """Now, with its zone."""
    return datetime.now(UTC)
