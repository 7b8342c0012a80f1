import math

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from ringfence_policy import canonical
from ringfence_policy.errors import TrustRefused

LARGEST = canonical.MAX_SAFE_INTEGER
SCALARS = st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20)


@given(DOCUMENTS)
@example({"\U0001f600": 1, "\ufb33": 2})  # UTF-16 code units and code points sort these two differently
@example({"a": '\x00\x1f\x7f\x80\u2028\u2029"\\/\b\f\n\r\t'})
def test_the_bytes_are_those_of_the_reference_implementation(document):
    written = canonical.encode(document)
    assert written == rfc8785.dumps(document)
    assert canonical.decode(written) == document


@pytest.mark.parametrize("wrong", [0.5, math.nan, b"bytes", {1: 2}, {"a": {2, 3}}, object()])
@pytest.mark.parametrize("place", [lambda x: x, lambda x: [1, x], lambda x: {"a": [x]}, lambda x: {"\u00e9": x}])
def test_what_json_or_this_project_has_no_form_for_is_refused_wherever_it_stands(wrong, place):
    with pytest.raises(TypeError):
        canonical.encode(place(wrong))


@pytest.mark.parametrize("wrong", [LARGEST + 1, -LARGEST - 1, "\ud800"])
def test_what_cannot_be_carried_exactly_is_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 -- one class for both
        canonical.encode({"a": wrong})


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1.0}',
        b'{"a":NaN}',
        b'{"a":1e2}',
        b'"\\u0041"',
        b"{",
        b"\xff",
    ],
)
def test_any_other_spelling_is_refused(data):
    with pytest.raises(TrustRefused):
        canonical.decode(data)
