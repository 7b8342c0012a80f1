"""A model as a strategy reads it: the same as numpy and in Flower's file format."""

import copy

import numpy as np
from flwr.app import Array, ArrayRecord

from ringfence_server.round_messages import arrays_of, to_record

MODEL = {
    "hidden.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.float32([1.5]),
    "step": np.array(7, dtype=np.int64),
}


def test_a_strategy_that_reads_flowers_file_format_gets_the_same_record():
    record = to_record(MODEL)
    assert list(record) == list(MODEL)
    for name, array in record.items():
        usual = Array(MODEL[name])
        assert (array.dtype, array.shape, array.stype, array.data) == (
            usual.dtype,
            usual.shape,
            usual.stype,
            usual.data,
        )
    for other in (ArrayRecord(dict(record)), copy.deepcopy(record)):
        for name, array in arrays_of(other).items():
            np.testing.assert_array_equal(array, MODEL[name], strict=True)


def test_a_strategy_that_computes_in_what_it_read_changes_nothing_for_the_next_reader():
    record = to_record(MODEL)
    array = record["bias"].numpy()
    array += 1
    assert record["bias"].numpy().tolist() == MODEL["bias"].tolist() == [1.5]
