import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ringfence_client.datasource import HolderData
from ringfence_client.evaluation import metrics_from_scores, scores
from ringfence_client.models import initial_arrays
from ringfence_client.modules import descend
from ringfence_client.references import LEARNING_RATE, ReferenceHolder, compute_references, train_without_privacy

torch.set_num_threads(1)

LOGISTIC = {"kind": "logistic-regression"}


def exact_metrics(model, arrays, rows):
    return metrics_from_scores(scores(model, arrays, rows), rows.labels)


def data(rows: int, seed: int, *, shift: float = 0.0) -> HolderData:
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
    labels = (features @ np.float32([3, -2, 0]) + shift + rng.logistic(0, 0.7, rows) > 0).astype(np.float32)
    return HolderData.from_arrays(features, labels)


@pytest.fixture
def holders() -> dict[str, ReferenceHolder]:
    return {
        "large": ReferenceHolder(train=data(300, 1), test=data(200, 2), weight=300),
        "small": ReferenceHolder(train=data(40, 3, shift=2), test=data(100, 4, shift=2), weight=40),
    }


def test_the_three_lines_have_all_that_a_report_shows(holders):
    lines = compute_references(holders, model=LOGISTIC, rounds=4)
    assert set(lines) == {"federated", "local", "pooled"}
    for line in lines.values():
        assert set(line["per_holder"]) == set(holders)
        assert 0.6 < line["accuracy"] <= 1
        assert 0.7 < line["auc"] <= 1
    assert [point["round"] for point in lines["federated"]["curve"]] == [1, 2, 3, 4]
    last = lines["federated"]["curve"][-1]
    assert (last["accuracy"], last["auc"]) == (lines["federated"]["accuracy"], lines["federated"]["auc"])


def test_the_lines_repeat_exactly(holders):
    spec = {"kind": "mlp", "hidden": (4,), "seed": 2}
    assert compute_references(holders, model=spec, rounds=2) == compute_references(holders, model=spec, rounds=2)


@pytest.mark.parametrize("model", [LOGISTIC, {"kind": "mlp", "hidden": (8, 4), "seed": 2}])
def test_steps_of_a_built_in_model_are_those_that_torch_takes(model):
    rows, start = data(200, 5), initial_arrays(model, 3)
    ours = train_without_privacy(model, start, rows, steps=30)
    of_torch = descend(model, start, rows, steps=30, learning_rate=LEARNING_RATE)
    assert list(ours) == list(of_torch)
    for name, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, of_torch[name], rtol=1e-4, atol=1e-5)
        assert (array != start[name]).any()


def test_one_holder_alone_is_federated_pooled_and_local_at_once(holders):
    lines = compute_references({"large": holders["large"]}, model=LOGISTIC, rounds=3)
    accuracies = {line["accuracy"] for line in lines.values()}
    assert len(accuracies) == 1
    assert lines["local"]["elsewhere"] == {"large": {"accuracy": None, "auc": None}}


def test_each_own_model_is_measured_at_home_and_elsewhere(holders):
    lines = compute_references(holders, model=LOGISTIC, rounds=3)
    start = initial_arrays(LOGISTIC, 3)
    alone = train_without_privacy(LOGISTIC, start, holders["large"].train, steps=30)
    at_home, away = (exact_metrics(LOGISTIC, alone, holders[key].test) for key in ("large", "small"))
    assert lines["local"]["per_holder"]["large"] == {"accuracy": at_home.accuracy, "auc": at_home.auc}
    assert lines["local"]["elsewhere"]["large"] == {"accuracy": away.accuracy, "auc": away.auc}


def test_enough_plain_steps_reach_the_optimum_that_scikit_learn_finds():
    rows = data(400, 7)
    found = train_without_privacy(LOGISTIC, initial_arrays(LOGISTIC, 3), rows, steps=2000)
    oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(rows.features, rows.labels)
    np.testing.assert_allclose(found["layers.weight"][0], oracle.coef_[0], rtol=2e-2, atol=2e-2)


def test_a_holder_without_records_or_with_one_label_is_measured_as_far_as_it_goes(holders):
    one_label = HolderData.from_arrays(np.zeros((3, 3), dtype=np.float32), np.ones(3, dtype=np.float32))
    holders["bare"] = ReferenceHolder(train=data(0, 1), test=one_label, weight=10)
    line = compute_references(holders, model=LOGISTIC, rounds=1)["local"]
    assert line["per_holder"]["bare"]["auc"] is None
    assert line["per_holder"]["bare"]["accuracy"] == 1.0  # the untrained model says one half, which counts as positive
