"""What crosses between agent and trainer: whole frames, and nothing that does not have the shape it must have."""

import contextlib
import os
import struct
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from ringfence_client.trainer_wire import (
    LARGEST_ANSWER,
    LARGEST_WORDS,
    Frame,
    WireFault,
    facts_in,
    model_facts_in,
    order_frame,
    order_in,
    receive,
    result_frame,
    result_in,
    send,
)
from ringfence_client.workroom import AppliedPrivacy, Measured, TrainedUpdate, UseOrder
from ringfence_policy.canonical import MAX_SAFE_INTEGER
from ringfence_policy.score_histogram import EXACT_BINS
from ringfence_policy.settlement import loudest_training
from ringfence_policy.vocabulary import Action

APPLIED = AppliedPrivacy(clipping_norm=0.5, noise_multiplier=1.25, sampling_rate=0.1, steps=3, noise_kind="csprng")
MODEL = {"b": np.float32([0.5]), "a": np.float32([[1, -2], [3, 4]])}


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def order(tiny_run):
    plan = tiny_run().plan
    return UseOrder(
        holder_id="elm",
        plan=plan,
        action=Action.TRAIN,
        round_number=2,
        arrays=MODEL,
        mechanism=loudest_training(plan),
        trainer="cohort",
        weight=60,
        rehearsal_seed=None,
    )


def update(**changes):
    members = {"holder_id": "elm", "arrays": dict(MODEL), "applied": APPLIED, "trainer": "cohort"}
    return TrainedUpdate(**(members | changes))


@given(words=st.dictionaries(st.text(), st.integers() | st.text() | st.none()), arrays=st.binary(max_size=5000))
def test_a_frame_arrives_as_it_was_sent(words, arrays):
    hear, say = os.pipe()
    try:
        writer = threading.Thread(target=send, args=(say, Frame(words, arrays)))
        writer.start()
        assert receive(hear) == Frame(words, arrays)
        writer.join()
    finally:
        os.close(hear)
        os.close(say)


def test_a_large_frame_passes_a_pipe_that_does_not_block(pipe):
    hear, say = pipe
    os.set_blocking(say, False)
    frame = Frame({"x": 1}, os.urandom(3_000_000))
    got = []
    reader = threading.Thread(target=lambda: got.append(receive(hear)))
    reader.start()
    send(say, frame, until=time.monotonic() + 20)
    reader.join()
    assert got == [frame]


def test_nobody_is_waited_for_beyond_the_time(pipe):
    hear, say = pipe
    os.set_blocking(say, False)
    with pytest.raises(WireFault, match="too long"):
        receive(hear, until=time.monotonic() + 0.05)
    with pytest.raises(WireFault, match="too long"):
        send(say, Frame({}, bytes(10_000_000)), until=time.monotonic() + 0.05)


def test_a_closed_pipe_is_an_end_and_one_that_breaks_off_is_a_fault(pipe):
    hear, say = pipe
    os.close(say)
    assert receive(hear) is None
    other, broken = os.pipe()
    os.write(broken, struct.pack(">IQ", 10, 0) + b"abc")
    os.close(broken)
    with pytest.raises(WireFault, match="middle"):
        receive(other)
    os.close(other)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">IQ", LARGEST_WORDS + 1, 0),
        struct.pack(">IQ", 0, 1 << 60),
        struct.pack(">IQ", 3, 0) + b"{]}",
        struct.pack(">IQ", 2, 0) + b"[]",
        struct.pack(">IQ", 2, 0) + b"\xff\xff",
        struct.pack(">IQ", 40_000, 0) + b"[" * 40_000,
    ],
)
def test_what_is_no_frame_is_refused(pipe, sent):
    hear, say = pipe
    os.write(say, sent)
    with pytest.raises(WireFault):
        receive(hear, until=time.monotonic() + 1)


def test_of_an_answer_fewer_words_are_taken_than_of_an_order(pipe):
    hear, say = pipe
    os.write(say, struct.pack(">IQ", LARGEST_ANSWER + 1, 0))
    with pytest.raises(WireFault, match="more was said"):
        receive(hear, until=time.monotonic() + 1, most_words=LARGEST_ANSWER)


def test_an_order_and_its_result_read_as_they_were_written(order):
    read = order_in(order_frame(order))
    assert replace(read, arrays={}) == replace(order, arrays={})
    for name, array in order.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)
    back = result_in(result_frame(update()), order)
    assert (back.applied, back.trainer, back.holder_id) == (APPLIED, "cohort", "elm")
    assert list(back.arrays) == list(MODEL)
    rows = (tuple(range(EXACT_BINS)), tuple(range(EXACT_BINS)))
    exact = replace(order, action=Action.EVALUATE, mechanism=None, trainer=None)
    assert result_in(result_frame(Measured(histogram=rows, applied=None)), exact) == Measured(rows, None)


NAN = {**MODEL, "b": np.float32([np.nan])}
BROKEN_UPDATES = {
    "another parameter": save({**MODEL, "c": np.float32([1])}),
    "one missing": save({"a": MODEL["a"]}),
    "another shape": save({**MODEL, "b": np.float32([1, 2])}),
    "another type": save({**MODEL, "b": np.float64([1])}),
    "not finite": save(NAN),
    "no arrays": b"",
    "no safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07os.exit\x94.",
}


@pytest.mark.parametrize("name", BROKEN_UPDATES)
def test_an_update_that_is_not_the_models_is_refused(order, name):
    with pytest.raises(WireFault):
        result_in(replace(result_frame(update()), arrays=BROKEN_UPDATES[name]), order)


@pytest.mark.parametrize(
    "changes",
    [
        {"said": "measured"},
        {"trainer": "opacus"},
        {"applied": None},
        {"applied": {}},
        {"more": 1},
        *({"applied": {"clipping_norm": value}} for value in (1, "1", None, True)),
        {"applied": {"steps": -1}},
        {"applied": {"steps": True}},
        {"applied": {"noise_kind": "mine"}},
    ],
)
def test_a_result_that_says_something_else_than_it_must_is_refused(order, changes):
    frame = result_frame(update())
    words = dict(frame.words) | changes
    if changes.get("applied"):
        words["applied"] = dict(frame.words["applied"]) | changes["applied"]
    with pytest.raises(WireFault):
        result_in(Frame(words, frame.arrays), order)


@pytest.mark.parametrize(
    "rows",
    [None, [], [[0] * EXACT_BINS], [[0] * 3] * 2, [[0.5] * EXACT_BINS] * 2, [[MAX_SAFE_INTEGER + 1] * EXACT_BINS] * 2],
)
def test_counts_of_another_shape_are_refused(order, rows):
    exact = replace(order, action=Action.EVALUATE, mechanism=None, trainer=None)
    with pytest.raises(WireFault):
        result_in(Frame({"said": "measured", "histogram": rows, "applied": None}), exact)


@given(
    words=st.dictionaries(
        st.sampled_from(["said", "records", "fingerprint", "shapes", "trainer"]),
        st.sampled_from(
            ["facts", "examined", "cohort", "sha256:" + "0" * 64, {}, {"a": [1]}, {"a": [-1]}, -1, 2, None, True]
        ),
    )
)
def test_facts_are_read_or_refused_and_never_anything_else(words):
    for reader in (facts_in, model_facts_in):
        try:
            found = reader(Frame(words))
        except WireFault:
            continue
        assert words["said"] == ("facts" if reader is facts_in else "examined")
        assert found
