"""`ringfence-node data ...`: what is in the data, counted.

Nothing but Typer is imported until a command runs.
"""

import typer

from ringfence_client.cli_options import AsJson, Directory
from ringfence_policy.cli import answering
from ringfence_policy.errors import DocumentInvalid

data_app = typer.Typer(no_args_is_help=True, help="Check the holder's records against the schema. Counts only.")

_DOES_NOT_FIT = 2


@data_app.callback()
def data() -> None:
    """Check the holder's records against the schema. Counts only, never values."""


@data_app.command()
@answering
def check(directory: Directory, *, as_json: AsJson = False) -> None:
    """Count what is in the data of DIR and what of it does not fit the schema. For your eyes alone; exit 2: no fit."""
    from ringfence_client.cli_show import show_data_report  # noqa: PLC0415
    from ringfence_client.data_check import check_data  # noqa: PLC0415
    from ringfence_client.home import HolderHome  # noqa: PLC0415
    from ringfence_policy.schema import DatasetSchema  # noqa: PLC0415
    from ringfence_policy.strict_toml import read_toml  # noqa: PLC0415

    home = HolderHome(directory)
    if not home.schema_file.exists():
        raise DocumentInvalid(
            "there is no schema to check the data against",
            expected="the declared shape of the data",
            where=str(home.schema_file),
            next_step="put the schema.toml there that the coordinator sends, and read it",
        )
    schema = read_toml(home.schema_file, DatasetSchema)
    report = check_data(home.directory, schema)
    show_data_report(report, schema, as_json=as_json)
    if not report.fits:
        raise typer.Exit(_DOES_NOT_FIT)
