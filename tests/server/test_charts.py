import itertools
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence_server import charts
from ringfence_server.report_facts import read_summary


@pytest.mark.parametrize("draw", [charts.rounds_chart, charts.holders_chart])
@pytest.mark.parametrize("measure", ["accuracy", "auc"])
def test_a_chart_is_well_formed_themed_and_described(draw, measure, example_summary):
    drawing = ET.fromstring(draw(read_summary(example_summary()), measure=measure))  # noqa: S314  # our own drawing
    assert drawing.get("role") == "img"
    assert "Federated, private" in drawing.get("aria-label")
    assert drawing.get("width") is None, "it scales with the page"
    styles = " ".join(element.get("style", "") for element in drawing.iter())
    for series in range(1, 5):
        assert f"var(--series-{series})" in styles
    assert "font-family" not in styles
    assert not re.search(r"#[0-9a-f]{6}", styles), "every colour is the theme's"


def test_the_budget_chart_has_a_panel_for_each_holder(example_summary, hospital_names):
    drawing = charts.budget_chart(read_summary(example_summary()))
    assert all(f">{name}</text>" in drawing for name in hospital_names)


def test_of_many_holders_those_nearest_to_their_caps_are_drawn_and_the_others_counted(example_summary):
    summary = example_summary()
    template = next(iter(summary["holders"].values()))
    summary["holders"] = {f"h{number}": {**template, "name": f"Hospital {number}"} for number in range(40)}
    for entry in summary["rounds"]:
        entry["epsilon"] = {f"h{number}": 0.001 * number for number in range(40)}
    drawing = charts.budget_chart(read_summary(summary))
    assert ">Hospital 39</text>" in drawing
    assert ">Hospital 15</text>" not in drawing
    assert "16 other data holders" in drawing


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted), st.floats(0.001, 0.2))
def test_labels_at_line_ends_keep_their_order_and_their_distance(values, gap):
    places = charts._apart(values, gap=gap)
    assert len(places) == len(values)
    assert all(later - earlier >= gap - 1e-9 for earlier, later in itertools.pairwise(places))


@settings(max_examples=25)
@given(
    values=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=40),
    level=st.none() | st.floats(0, 1),
)
def test_a_chart_can_be_drawn_of_any_scores(values, level):
    rounds = [
        {"round": number, "cohort": ["a"], "metrics": {"accuracy": value, "per_holder": {"a": {"accuracy": value}}}}
        for number, value in enumerate(values, start=1)
    ]
    summary = {"holders": {"a": {"epsilon_cap": 1}}, "rounds": rounds, "metrics": {"pooled": {"accuracy": level}}}
    run = read_summary(summary)
    for drawing in (
        charts.rounds_chart(run, measure="accuracy"),
        charts.holders_chart(run, measure="accuracy"),
        charts.budget_chart(run),
    ):
        assert not drawing or drawing.startswith("<svg")


def test_a_dollar_sign_in_a_holders_name_is_no_formula(example_summary):
    summary = example_summary()
    summary["holders"]["cleveland"]["name"] = r"$\frac{a}$ & Sons"
    assert r">$\frac{a}$ &amp; Sons</text>" in charts.holders_chart(read_summary(summary), measure="accuracy")


def test_a_name_in_a_script_the_drawing_font_lacks_is_drawn_without_a_warning(example_summary):
    summary = example_summary()
    summary["holders"]["cleveland"]["name"] = "北京协和医院 مستشفى"
    assert "北京协和医院 مستشفى</text>" in charts.budget_chart(read_summary(summary))


def test_a_long_name_stands_over_its_panel_in_two_lines(example_summary):
    summary = example_summary()
    summary["holders"]["cleveland"]["name"] = "University Hospitals Zurich and Basel"
    drawing = charts.budget_chart(read_summary(summary))
    assert ">University Hospitals</" in drawing
    assert ">Zurich and Basel</" in drawing
