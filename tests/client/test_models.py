import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import scores
from ringfence_client.models import code_digest, initial_arrays, trained_names
from ringfence_client.modules import build_module, logits_of, read_arrays, write_arrays
from ringfence_policy import canonical
from ringfence_policy.errors import DocumentInvalid, TrustRefused

torch.set_num_threads(1)

MODULE = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.layer = nn.Linear(feature_count, 1)
    def forward(self, features):
        return self.layer(features).squeeze(-1)

class Column(Linear):
    def forward(self, features):
        return self.layer(features)

class TwoLogits(Linear):
    def forward(self, features):
        return torch.cat([self.layer(features), self.layer(features)], dim=1)

class CentredInTraining(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
        self.layer, self.dropout = nn.Linear(feature_count, 1), nn.Dropout(0.5)
    def forward(self, features):
        return self.layer(self.dropout(features - features.mean(dim=0) if self.training else features))

class Centred(Linear):
    def forward(self, features):
        return super().forward(features - features.mean(dim=0))

class NoParameters(nn.Module):
    def __init__(self, feature_count):
        super().__init__()
    def forward(self, features):
        return features.sum(dim=1)

not_a_class = 3
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    path = tmp_path / "clinic_model.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def own(name: str, **more) -> dict[str, object]:
    return {"kind": "module", "path": f"clinic_model:{name}", "seed": 4, **more}


def test_logistic_regression_starts_at_zero_and_says_one_half():
    arrays = initial_arrays({"kind": "logistic-regression"}, 3)
    assert {name: array.shape for name, array in arrays.items()} == {"layers.weight": (1, 3), "layers.bias": (1,)}
    assert not any(array.any() for array in arrays.values())
    module = build_module({"kind": "logistic-regression"}, 3)
    assert module(torch.ones(2, 3)).tolist() == [0.0, 0.0]


def test_an_mlp_starts_the_same_from_the_same_seed_in_every_process():
    spec = {"kind": "mlp", "hidden": (4, 3), "seed": 5}
    arrays = initial_arrays(spec, 2)
    assert [array.shape for array in arrays.values()] == [(4, 2), (4,), (3, 4), (3,), (1, 3), (1,)]
    script = (
        "from ringfence_client.models import initial_arrays;"
        f"print(initial_arrays({spec!r}, 2)['layers.0.weight'].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == arrays["layers.0.weight"].tobytes().hex()
    other = initial_arrays({**spec, "seed": 6}, 2)
    assert (other["layers.0.weight"] != arrays["layers.0.weight"]).any()


def test_an_mlp_starts_the_same_with_every_version_of_numpy():
    arrays = initial_arrays({"kind": "mlp", "hidden": (4, 3), "seed": 5}, 2)
    found = hashlib.sha256(b"".join(array.astype("<f4").tobytes() for array in arrays.values())).hexdigest()
    assert found == "e1cdc074fb0b72b4260f7b42712f1791babb0b58be2d2faaef0eae4dddf1d111"


def test_an_mlp_has_the_function_of_its_parameters():
    spec = {"kind": "mlp", "hidden": (4,), "seed": 5}
    arrays = initial_arrays(spec, 2)
    rows = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    hidden = np.maximum(rows @ arrays["layers.0.weight"].T + arrays["layers.0.bias"], 0)
    expected = (hidden @ arrays["layers.2.weight"].T + arrays["layers.2.bias"])[:, 0]
    found = build_module(spec, 2)(torch.tensor(rows)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "logistic-regression"},
        {"kind": "mlp", "hidden": (), "seed": 1},
        {"kind": "mlp", "hidden": (4,), "seed": 0},
        {"kind": "mlp", "hidden": (32, 16, 8), "seed": 2**31 - 1},
    ],
)
@pytest.mark.parametrize("features", [1, 19])
def test_a_built_in_model_is_the_same_in_numpy_and_in_torch(spec, features):
    arrays, of_torch = initial_arrays(spec, features), read_arrays(build_module(spec, features))
    assert list(arrays) == list(of_torch) == trained_names(spec, features)
    assert [array.tobytes() for array in arrays.values()] == [array.tobytes() for array in of_torch.values()]
    rows = HolderData.from_arrays(np.random.default_rng(3).normal(size=(50, features)), np.zeros(50))
    (logits,) = logits_of(spec, arrays, features, [rows.features])
    np.testing.assert_allclose(scores(spec, arrays, rows), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_building_a_built_in_model_leaves_torchs_chance_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    build_module({"kind": "mlp", "hidden": (4,), "seed": 5}, 3)
    assert torch.equal(torch.rand(1), expected)


def test_arrays_go_in_and_out_unchanged():
    spec = {"kind": "mlp", "hidden": (4,), "seed": 5}
    module = build_module(spec, 2)
    arrays = {
        name: np.random.default_rng(2).normal(size=a.shape).astype("f4") for name, a in read_arrays(module).items()
    }
    write_arrays(module, arrays)
    assert all((found == arrays[name]).all() for name, found in read_arrays(module).items())


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("layers.bias"),
        lambda arrays: arrays.update(extra=np.zeros(1, dtype=np.float32)),
        lambda arrays: arrays.update({"layers.bias": np.zeros(2, dtype=np.float32)}),
        lambda arrays: arrays.update({"layers.bias": np.float32([np.nan])}),
        lambda arrays: arrays.update({"layers.weight": np.full((1, 3), 1e300)}),
    ],
)
def test_arrays_that_are_not_the_models_are_refused(change):
    spec = {"kind": "logistic-regression"}
    arrays = initial_arrays(spec, 3)
    change(arrays)
    with pytest.raises(TrustRefused):
        write_arrays(build_module(spec, 3), arrays)


@pytest.mark.parametrize("name", ["Linear", "Column"])
@pytest.mark.usefixtures("source")
def test_a_holders_own_module_gives_one_logit_per_row(name):
    module = build_module(own(name), 3)
    assert module(torch.zeros(7, 3)).shape == (7,)
    first, second = initial_arrays(own(name), 3), initial_arrays(own(name), 3)
    assert all((first[key] == second[key]).all() for key in first)


def test_a_modules_digest_is_over_its_source_file(source):
    assert code_digest("clinic_model:Linear") == canonical.digest_bytes(source.read_bytes())
    before = code_digest("clinic_model:Linear")
    source.write_text(MODULE + "\n# changed\n")
    assert code_digest("clinic_model:Linear") != before
    assert code_digest("") == ""


def test_code_changed_after_approval_is_refused_and_not_run(source):
    spec = own("Linear", code_digest=code_digest("clinic_model:Linear"))
    build_module(spec, 3)
    source.write_text(f"raise SystemExit('ran')\n{MODULE}")
    with pytest.raises(TrustRefused, match="not the code that was approved"):
        build_module(spec, 3)


def test_what_runs_is_the_file_that_was_digested_and_not_an_earlier_import(source):
    build_module(own("Linear"), 3)
    source.write_text(MODULE.replace("nn.Linear(feature_count, 1)", "nn.Linear(feature_count, 1, bias=False)"))
    assert set(initial_arrays(own("Linear"), 3)) == {"layer.weight"}


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"kind": "forest"}, "unknown model"),
        ({}, "unknown model"),
        (own("Absent"), "not a torch module"),
        (own("not_a_class"), "not a torch module"),
        (own("NoParameters"), "no parameters"),
        (own("TwoLogits"), "one logit per row"),
        (own("Centred"), "records influence each other"),
        (own("CentredInTraining"), "records influence each other"),
        ({"kind": "module", "path": "clinic_model"}, "not an import path"),
        ({"kind": "module", "path": "no_such_clinic:Model"}, "not found"),
        ({"kind": "module", "path": "math:Model"}, "not found"),
        ({"kind": "module", "path": "no.such.package:Model"}, "not found"),
    ],
)
@pytest.mark.usefixtures("source")
def test_a_model_that_cannot_be_built_is_refused(spec, named):
    with pytest.raises(DocumentInvalid, match=named):
        build_module(spec, 3)
