import itertools
import re
import time
from html.parser import HTMLParser

import pytest

from ringfence_server import report
from ringfence_server.report import grid_rows, render_report, write_report
from ringfence_server.report_facts import read_summary

VOID_ELEMENTS = {"meta", "link", "br", "hr", "img", "input", "source", "area", "base", "col", "embed", "track", "wbr"}
HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}</style></svg>$x_{$ "
    "url(http://evil.example) &lt;"
)


class _Page(HTMLParser):
    """What a browser would act on: elements with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(example_summary):
    return render_report(example_summary())


def _every_string_replaced(value, text):
    if isinstance(value, dict):
        return {key: _every_string_replaced(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_every_string_replaced(item, text) for item in value]
    return text if isinstance(value, str) else value


def _without_prose(page):
    """The page's mark-up and style alone, so that an address inside prose is not taken for a reference."""
    return re.sub(r">[^<]*<", "><", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


# ----------------------------------------------------------------------------- one file, no network, no script


def test_the_page_refers_to_nothing_outside_itself(page):
    for name, attributes in _Page(page).elements:
        for attribute, value in attributes.items():
            if attribute.split(":")[-1] in {"src", "href", "srcset", "poster", "action", "formaction", "data", "ping"}:
                assert value.startswith(("#", "data:")), f"<{name} {attribute}={value!r}>"
    for reference in re.findall(r"url\(\s*['\"]?([^)'\"]*)", page):
        assert reference.startswith(("#", "data:")), reference
    assert "@import" not in page
    assert not re.search(r"https?://", page)


def test_the_page_runs_no_script_and_forbids_itself_the_network(page):
    parsed = _Page(page)
    assert not parsed.named("script")
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    policy = next(
        meta["content"] for meta in parsed.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_every_link_inside_the_page_leads_somewhere_and_no_identifier_is_used_twice(page):
    elements = _Page(page).elements
    identifiers = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    wanted = {attributes["href"][1:] for _, attributes in elements if attributes.get("href", "").startswith("#")}
    wanted |= {attributes["aria-labelledby"] for _, attributes in elements if "aria-labelledby" in attributes}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(identifiers)


def test_markup_in_any_string_of_the_summary_is_shown_as_text_and_never_obeyed(example_summary):
    summary = _every_string_replaced(example_summary(), HOSTILE)
    hostile_ids = {f"{HOSTILE}{number}": holder for number, holder in enumerate(summary["holders"].values())}
    summary |= {"holders": hostile_ids, "rehearsal": False, "status": "completed"}
    for entry in summary["rounds"]:
        entry["cohort"] = list(hostile_ids)
        if entry["metrics"]:
            entry["metrics"]["per_holder"] = {holder: {"accuracy": 0.5, "auc": 0.5} for holder in hostile_ids}
    page = render_report(summary)
    parsed = _Page(page)
    clean = _Page(render_report(example_summary()))
    assert {name for name, _ in parsed.elements} <= {name for name, _ in clean.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(parsed.text), "the text itself is still there to be read"
    assert "49" not in "".join(re.findall(r"onerror=alert\(1\)(.{0,6})", page)), "and is no template"
    for attributes in (attributes for _, attributes in parsed.elements):
        assert all(
            "evil" not in value for name, value in attributes.items() if name in {"style", "class", "id", "href"}
        )


def test_keys_of_the_summary_are_escaped_like_its_values(example_summary):
    summary = example_summary()
    summary["environment"][HOSTILE] = "x"
    summary["timings"][HOSTILE] = 1.0
    summary["metrics"][HOSTILE] = {"accuracy": 1}
    assert not _Page(render_report(summary)).named("script")


def test_control_characters_and_direction_overrides_do_not_reach_the_page(example_summary):
    summary = example_summary()
    summary["holders"]["budapest"]["name"] = "Buda\u202epest\x00\x1b[31m\ud800\ufffe"
    page = render_report(summary)
    assert "Budapest[31m" in page
    assert not set(page) & set("\u202e\x00\x1b\ud800\ufffe")


# ----------------------------------------------------------------------------- what it says


def test_the_verdict_says_what_was_trained_on_whose_data_for_what_how_private_and_how_proved(page):
    words = _Page(page).words
    assert (
        "A logistic regression was trained in 12 rounds on the records of 4 data holders (Cleveland Clinic, Budapest, "
        "Zurich and Basel, and Long Beach VA); the records stayed with them. Stated purpose: heart disease research."
    ) in words
    assert "no holder has spent more than epsilon 1.000 at delta 10⁻⁴." in words
    assert "The evidence is verified: all 6 checks hold" in words
    assert 'class="banner' not in page


def test_a_rehearsal_is_marked_not_private_in_title_banner_verdict_and_privacy_card(example_summary):
    summary = example_summary()
    summary |= {"rehearsal": True, "private": False}
    summary["privacy"]["noise_source"] = "seeded"
    page = render_report(summary)
    assert re.search(r"<title>NOT PRIVATE:", page)
    assert re.search(r'<p class="shout">NOT PRIVATE</p>', page)
    assert "The model is NOT PRIVATE: release neither" in page
    assert page.count("NOT PRIVATE") >= 6
    assert "Federated, private" not in page


def test_a_failed_check_stands_first_and_the_page_warns(example_summary):
    summary = example_summary()
    summary["evidence"]["checks"][3] |= {"passed": False, "detail": "round 3, holder budapest: sent without a permit"}
    words = _Page(render_report(summary)).words
    assert "The evidence does NOT verify: 1 of 6 checks fail." in words
    assert words.index("sent without a permit") < words.index("byte for byte")


def test_the_page_tells_how_to_verify_the_evidence_oneself(page):
    assert "<code>ringfence evidence verify evidence.zip --root roots.json</code>" in page


def test_the_command_shown_is_safe_to_paste_whatever_the_bundle_is_called(example_summary):
    summary = example_summary()
    summary["evidence"]["bundle"] = "out/my run; rm -rf $HOME.zip"
    words = _Page(render_report(summary)).words
    assert "ringfence evidence verify 'my run; rm -rf $HOME.zip' --root roots.json" in words


def test_the_parts_stand_in_the_agreed_order(page):
    marks = ["<h1>", 'class="verdict"', *(f'id="{name}"' for name in (
        "key-figures", "quality", "decisions", "budgets", "policies", "preview", "privacy", "evidence"
    )), '<footer class="colophon">']  # fmt: skip
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)


def test_policies_previews_and_the_privacy_card_say_what_the_summary_says(page):
    words = _Page(page).words
    for said in (
        "heart-consortium may train on this data; nobody else may.",
        "Purpose: insurance pricing. 3 of 4 data holders would refuse some or all rounds.",
        "State the purpose heart disease research.",
        "two datasets are neighbours if one has one record more",
        "a cryptographically secure generator, at each holder",
        "what one person with several records contributes",
        "averages the last half of the rounds",
    ):
        assert said in words


# ----------------------------------------------------------------------------- the grid


def _grid(summary):
    run = read_summary(summary)
    return {row.holder: row.cells for row in grid_rows(run)}


def test_the_grid_has_a_row_per_holder_and_a_cell_per_attempt(example_summary):
    cells = _grid(example_summary())
    assert [len(row) for row in cells.values()] == [13] * 4
    assert [cell.state for cell in cells["Cleveland Clinic"]] == ["permitted"] * 6 + ["void"] + ["permitted"] * 6
    assert [cell.label for cell in cells["Long Beach VA"][9:]] == ["epsilon"] * 4
    assert [cell.label for cell in cells["Budapest"][11:]] == ["revoked"] * 2
    assert [cell.label for cell in cells["Zurich and Basel"][11:]] == ["min holders"] * 2
    assert cells["Budapest"][4].state == "rejected"


def test_every_state_of_the_grid_has_its_own_symbol_and_a_sentence(example_summary):
    summary = example_summary()
    summary["rounds"][0]["cohort"] = ["cleveland"]
    cells = [cell for row in _grid(summary).values() for cell in row]
    symbols = {cell.state: cell.symbol for cell in cells}
    assert set(symbols) == {"permitted", "refused", "rejected", "void", "absent"}
    assert len(set(symbols.values())) == len(symbols)
    assert all(cell.sentence.startswith("Round ") and cell.sentence.endswith(".") for cell in cells)


def test_a_refusal_names_point_and_every_failed_clause_in_its_cell(example_summary):
    summary = example_summary()
    rounds = summary["rounds"]
    rounds[12]["refused"] = [
        {
            "holder": "budapest",
            "clauses": ["epsilon", "revoked"],
            "point": "node-before-upload",
            "reasons": [*rounds[9]["refused"][0]["reasons"], *rounds[12]["refused"][1]["reasons"]],
        }
    ]
    cell = _grid(summary)["Budapest"][12]
    assert cell.label == "epsilon +1"
    assert cell.sentence == (
        "Round 12, Budapest: refused by the holder itself, before sending: All uses of this data together may spend at "
        "most epsilon 0.8 of privacy; The policy must not have been revoked."
    )


def test_a_reason_can_be_reached_by_keyboard_and_is_read_out(page):
    cells = re.findall(r'<td class="(refused|rejected|void|permitted|absent)"( tabindex="0")?>(.*?)</td>', page)
    assert len(cells) == 4 * 13
    for state, focusable, content in cells:
        assert bool(focusable) == (state in {"refused", "rejected", "void"})
        assert 'class="symbol" aria-hidden="true"' in content
        assert re.search(r'<span class="why">Round \d+, ', content)


def test_a_reason_shows_on_hover_and_on_focus_without_a_script(page):
    assert re.search(r"\.grid td:hover \.why, \.grid td:focus \.why \{\s*left: 0;", page)


def test_refusals_are_told_as_stories_with_their_rounds(page):
    words = _Page(page).words
    assert "Long Beach VA refused rounds 9 to 12: epsilon" in words
    assert "Budapest refused rounds 11 and 12: revoked" in words
    assert "Zurich and Basel refused rounds 11 and 12: min holders" in words
    assert "Budapest 's update in round 5 was rejected before aggregation: norm" in words
    assert "Round 7 : the round was not committed: the model did not change (the worker was restarted)." in words


# ----------------------------------------------------------------------------- readable


def _themes():
    css = (report.Path(report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    roots = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root)) for root in roots]


def _contrast(one, other):
    """Contrast ratio of two sRGB colours. Source: WCAG 2.2, definitions of contrast ratio and relative luminance."""

    def luminance(colour):
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", _themes(), ids=["light", "dark", "print"])
def test_every_text_colour_has_a_contrast_of_at_least_four_and_a_half(theme):
    on_surfaces = ["ink", "muted", "accent", "good", "bad", "refused", "series-1", "series-2", "series-3", "series-4"]
    pairs = [(colour, surface) for colour in on_surfaces for surface in ("page", "card")]
    pairs += [
        ("permit-ink", "permit"),
        ("on-refused", "refused"),
        ("on-rejected", "rejected"),
        ("on-bad", "bad"),
        ("card", "ink"),
    ]
    for text, surface in pairs:
        assert _contrast(theme[text], theme[surface]) >= 4.5, (text, surface)


def test_headings_descend_without_a_gap_and_landmarks_are_there(page):
    parsed = _Page(page)
    levels = [int(name[1]) for name, _ in parsed.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert [len(parsed.named(landmark)) for landmark in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert parsed.named("html") == [{"lang": "en"}]


def test_every_table_names_its_columns_and_every_scrolling_part_can_be_scrolled_by_keyboard(page):
    parsed = _Page(page)
    assert len(parsed.named("table")) == len(parsed.named("thead"))
    assert all(attributes.get("scope") in {"col", "row"} for attributes in parsed.named("th"))
    scrolling = [attributes for attributes in parsed.named("div") if attributes.get("class") == "scroll"]
    assert scrolling
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolling)


# ----------------------------------------------------------------------------- writing


def test_the_report_is_one_file_that_replaces_an_older_one(tmp_path, page, example_summary):
    target = tmp_path / "out" / "report.html"
    write_report({}, target)
    write_report(example_summary(), target)
    assert target.read_text(encoding="utf-8") == page
    assert [entry.name for entry in target.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_put_in_place_leaves_no_draft_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match="report"):
        write_report({}, tmp_path / "report.html")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_same_summary_gives_the_same_bytes(page, example_summary):
    assert render_report(example_summary()) == page


def _shrunk(summary, holders):
    chosen = dict(list(summary["holders"].items())[:holders])
    return summary | {"holders": chosen}


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {},
        lambda summary: summary | {"rounds": [], "metrics": {}, "curves": {}},
        lambda summary: summary | {"rounds": summary["rounds"][:1], "status": "stopped", "reason": "the disk is full"},
        lambda summary: summary | {"metrics": dict.fromkeys(summary["metrics"]), "curves": None, "preview": None},
        lambda summary: _shrunk(summary, 1),
        lambda summary: _shrunk(summary, 0),
        lambda summary: summary | {"rounds": [entry | {"metrics": None, "cohort": []} for entry in summary["rounds"]]},
    ],
    ids=["empty", "no-round", "stopped", "no-metrics", "one-holder", "no-holder", "nothing-committed"],
)
def test_a_summary_with_missing_parts_still_gives_a_whole_page(change, example_summary):
    parsed = _Page(render_report(change(example_summary())))
    assert not parsed.open
    assert len(parsed.named("h1")) == 1


def test_thirty_holders_and_forty_rounds_are_drawn_in_under_three_seconds_of_processor_time(example_summary):
    summary = example_summary()
    holders = list(summary["holders"].values())
    names = [f"holder-{number:02d}" for number in range(30)]
    summary["holders"] = {name: holders[number % 4] for number, name in enumerate(names)}
    per_holder = {name: {"accuracy": 0.7, "auc": 0.8} for name in names}
    for metrics in summary["metrics"].values():
        metrics["per_holder"] = per_holder
    summary["rounds"] = [
        summary["rounds"][0] | {"round": number, "cohort": names, "epsilon": dict.fromkeys(names, number / 60)}
        for number in range(1, 41)
    ]
    started = time.process_time()
    page = render_report(summary)
    assert time.process_time() - started < 3
    assert page.count('<td class="permitted"') == 1200
