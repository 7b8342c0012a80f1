"""Charts of one run as inline SVG, drawn by matplotlib and coloured by the page's own CSS variables.

Matplotlib is imported inside the functions, so that importing this module costs nothing. It draws every themed part in
a sentinel colour, and `_as_inline_svg` replaces those by `var(--...)`: one drawing then follows light, dark and print.
Text stays text (selectable, in the page's font); identifiers are deterministic and differ between charts, so that the
same summary gives the same bytes and several charts can share one page.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from xml.etree import ElementTree as ET  # reads back only what matplotlib wrote a line earlier

from ringfence_server import report_words as words
from ringfence_server.report_facts import Holder, Run, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["accuracy", "auc"]
_WIDTH: Final = 520
_FONT_SIZE: Final = 18
_POINTS_PER_INCH: Final = 72  # matplotlib's SVG unit, so that sizes below are units of the view box
_LABELLED_HOLDERS: Final = 8  # more labels at the right edge would run into each other
_MARKED_ROUNDS: Final = 30
_LONGEST_LABEL: Final = 40
_PANEL_HEIGHT: Final = 202  # with room for a name in two lines
_PANEL_NAME: Final = 22  # characters that fit over a panel
_MOST_PANELS: Final = 24
_PANEL_COLUMNS: Final = 2
_MOST_TICKS: Final = 8
_MOST_STEPS: Final = 5
_SVG: Final = "{http://www.w3.org/2000/svg}"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One way to train, drawn alike in every chart: told apart by dash and marker as well as by colour."""

    key: str
    name: str
    short_name: str
    explanation: str
    colour: str
    dash: str
    marker: str


def series_of(run: Run) -> tuple[Series, ...]:
    """The four ways to train, in the order in which the report names them."""
    noisy = ("Federated, private", "private") if run.private else ("Federated, rehearsal", "rehearsal")
    return (
        Series(
            key="federated_private",
            name=noisy[0],
            short_name=noisy[1],
            explanation="what this run trained" if run.private else "what this run trained: NOT PRIVATE",
            colour="series-1",
            dash="-",
            marker="o",
        ),
        Series(
            key="federated",
            name="Federated, no privacy",
            short_name="no privacy",
            explanation="the same plan without clipping and noise",
            colour="series-2",
            dash="--",
            marker="s",
        ),
        Series(
            key="local",
            name="Each holder alone",
            short_name="alone",
            explanation="trains on its own records only, no noise",
            colour="series-3",
            dash=":",
            marker="^",
        ),
        Series(
            key="pooled",
            name="All records pooled",
            short_name="pooled",
            explanation="all records in one place, for comparison only",
            colour="series-4",
            dash="-.",
            marker="D",
        ),
    )


# What matplotlib draws with -> the CSS variable that takes its place. None of these occurs in matplotlib's defaults.
_SENTINELS: Final = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "grid": "#0a0b03",
    "card": "#0a0b04",
    "refused": "#0a0b05",
    "series-1": "#0a0b11",
    "series-2": "#0a0b12",
    "series-3": "#0a0b13",
    "series-4": "#0a0b14",
}
_CSS_VARIABLES: Final = {sentinel: f"var(--{name})" for name, sentinel in _SENTINELS.items()}


def rounds_chart(run: Run, *, measure: Measure) -> str:
    """One measure per round: two curves, and the two comparison models as horizontal lines.

    Returns:
        An `<svg>` element, or an empty string where the run measured nothing.
    """
    curves = _curves(run, measure)
    if not curves:
        return ""
    last_round = max([run.plan.rounds or 1, *(number for points in curves.values() for number in points)])
    figure, axes = _canvas(height=380, left=62, right=118, top=14, bottom=54)
    ends: dict[Series, float] = {}
    for series in series_of(run):
        points = curves.get(series.key)
        level = _measured(run.final.get(series.key), measure)
        if points is None and level is not None and series.key in {"local", "pooled"}:
            points = {0: level, last_round + 1: level}
        if not points:
            continue
        is_flat = series.key in {"local", "pooled"}
        numbers = sorted(points)
        axes.plot(
            numbers,
            [points[number] for number in numbers],
            color=_SENTINELS[series.colour],
            linestyle=series.dash,
            linewidth=3.6 if series.key == "federated_private" else 2.6,
            marker="" if is_flat or len(numbers) > _MARKED_ROUNDS else series.marker,
            markersize=8,
            zorder=4 if series.key == "federated_private" else 3,
        )
        ends[series] = points[numbers[-1]]
    axes.set_xlim(0.6, last_round + 0.4)
    _round_axis(axes, last_round)
    _value_axis(axes, [axes.dataLim.y0, axes.dataLim.y1], _formatter(measure), vertical=True)
    _labels_at_the_right(axes, [(series.short_name, series.colour, value) for series, value in ends.items()])
    return _as_inline_svg(figure, identity=f"rounds-{measure}", alternative=_rounds_in_words(run, curves, measure))


def holders_chart(run: Run, *, measure: Measure) -> str:
    """One measure per data holder: a row each, with one mark per way to train.

    Returns:
        An `<svg>` element, or an empty string where nothing was measured per holder.
    """
    found = [
        (
            series,
            {
                holder.id: value
                for holder in run.holders
                if (value := _at_holder(run, series, holder, measure)) is not None
            },
        )
        for series in series_of(run)
    ]
    values = [value for _, points in found for value in points.values()]
    if not values:
        return ""
    row = 92 if len(run.holders) <= _LABELLED_HOLDERS else 74
    figure, axes = _canvas(height=40 + row * len(run.holders), left=10, right=18, top=4, bottom=36)
    low, high = _value_axis(axes, values, _formatter(measure), vertical=False)
    for position, holder in enumerate(run.holders):
        axes.axhline(position, color=_SENTINELS["grid"], linewidth=1.4, zorder=1)
        axes.text(
            low,
            position - 0.3,
            _label(holder.name),
            color=_SENTINELS["ink"],
            fontsize=_FONT_SIZE,
            fontweight="bold",
            va="center",
        )
        if not any(holder.id in points for _, points in found):
            axes.text(low, position + 0.2, "not measured", color=_SENTINELS["muted"], fontsize=_FONT_SIZE, va="center")
    for lane, (series, points) in enumerate(found):
        places = [position for position, holder in enumerate(run.holders) if holder.id in points]
        axes.plot(
            [points[run.holders[position].id] for position in places],
            [position + (lane - 0.5) * 0.1 for position in places],
            color=_SENTINELS[series.colour],
            linestyle="",
            marker=series.marker,
            markersize=13 if series.key == "federated_private" else 11,
            markeredgecolor=_SENTINELS["card"],
            markeredgewidth=1.2,
            zorder=6 - lane,
            clip_on=False,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(len(run.holders) - 0.42, -0.58)
    axes.set_yticks([])
    return _as_inline_svg(figure, identity=f"holders-{measure}", alternative=_holders_in_words(run, found, measure))


def budget_chart(run: Run) -> str:
    """Each holder's epsilon after each round, as a share of its own cap: a small panel per holder.

    Panels rather than lines in one frame: holders calibrate their noise to their own caps, so that their shares of
    those caps run on top of each other. Of many holders, those that are nearest to their caps; the table has them all.

    Returns:
        An `<svg>` element, or an empty string where no holder has a cap or no round was run.
    """
    lines = {holder: points for holder in run.holders if (points := _spending(run, holder))}
    if not lines:
        return ""
    nearest = sorted(lines, key=lambda holder: -lines[holder][-1][1])[:_MOST_PANELS]
    left_out = len(lines) - len(nearest)
    lines = {holder: points for holder, points in lines.items() if holder in nearest}
    columns = min(_PANEL_COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    figure = _figure(height=rows * _PANEL_HEIGHT)
    width = (_WIDTH - 66 * columns) / columns / _WIDTH
    for index, (holder, points) in enumerate(lines.items()):
        row, column = divmod(index, columns)
        left = column / columns + 58 / _WIDTH
        bottom = (rows - 1 - row) / rows + 36 / (rows * _PANEL_HEIGHT)
        height = (_PANEL_HEIGHT - 100) / (rows * _PANEL_HEIGHT)
        _draw_spending(_bare(figure.add_axes((left, bottom, width, height))), points)
        figure.text(
            left - 50 / _WIDTH,
            bottom + height + 10 / (rows * _PANEL_HEIGHT),
            "\n".join(textwrap.wrap(holder.name, _PANEL_NAME * 2 // columns, max_lines=2, placeholder="…")),
            color=_SENTINELS["ink"],
            fontsize=_FONT_SIZE,
            fontweight="bold",
            va="bottom",
        )
    said = "; ".join(f"{holder.name} {words.percent(points[-1][1])}" for holder, points in lines.items())
    if left_out:
        said += f"; {left_out} other data holders, no nearer to their caps, are not drawn"
    return _as_inline_svg(
        figure,
        identity="budget",
        alternative=f"Epsilon spent per round as a share of each holder's cap. After the last round: {said}.",
    )


def swatch(series: Series) -> str:
    """A small sample of a series' line and mark, for a legend in HTML. Decorative: the legend has the words."""
    dashes = {"-": "", "--": "8 5", ":": "2 5", "-.": "9 4 2 4"}[series.dash]
    marks = {
        "o": '<circle cx="22" cy="9" r="6"/>',
        "s": '<rect x="16.5" y="3.5" width="11" height="11"/>',
        "^": '<path d="M22 2.5 28.5 14.5H15.5Z"/>',
        "D": '<path d="M22 2 29 9 22 16 15 9Z"/>',
    }
    return (
        '<svg class="swatch" viewBox="0 0 44 18" aria-hidden="true" focusable="false">'
        f'<g fill="var(--{series.colour})"><path d="M0 9H44" fill="none" stroke="var(--{series.colour})" '
        f'stroke-width="3.4" stroke-dasharray="{dashes}"/>{marks[series.marker]}</g></svg>'
    )


def _curves(run: Run, measure: Measure) -> Mapping[str, Mapping[int, float]]:
    private = {entry.number: _measured(entry.scores, measure) for entry in run.rounds if entry.committed}
    federated = {number: _measured(scores, measure) for number, scores in run.federated_curve}
    curves = {"federated_private": private, "federated": federated}
    known = {
        key: {number: value for number, value in points.items() if value is not None} for key, points in curves.items()
    }
    return {key: points for key, points in known.items() if points}


def _measured(scores: Scores | None, measure: Measure) -> float | None:
    if scores is None:
        return None
    return scores.accuracy if measure == "accuracy" else scores.auc


def _at_holder(run: Run, series: Series, holder: Holder, measure: Measure) -> float | None:
    scores = words.federated_scores(run) if series.key == "federated_private" else run.final.get(series.key)
    return None if scores is None else _measured(scores.per_holder.get(holder.id), measure)


def _spending(run: Run, holder: Holder) -> list[tuple[int, float]]:
    """(round, epsilon / cap) after each round; a round without a number for this holder spent nothing."""
    if not holder.epsilon_cap or holder.epsilon_cap <= 0 or not run.rounds:
        return []
    spent = holder.epsilon_at_start or 0.0
    points = {0: spent / holder.epsilon_cap}
    for entry in run.rounds:
        spent = entry.epsilon.get(holder.id, spent)
        points[entry.number] = spent / holder.epsilon_cap
    return sorted(points.items())


def _draw_spending(axes: "Axes", points: Sequence[tuple[int, float]]) -> None:
    # A round's epsilon is spent when its update leaves; the last step is drawn half a round wide so that it shows.
    ends = [*points, (points[-1][0] + 0.5, points[-1][1])]
    numbers, shares = [number for number, _ in ends], [share for _, share in ends]
    colour = _SENTINELS["series-1"]
    axes.fill_between(numbers, shares, step="post", color=colour, alpha=0.22, linewidth=0)
    axes.plot(numbers, shares, color=colour, linewidth=3, drawstyle="steps-post")
    axes.axhline(1, color=_SENTINELS["refused"], linewidth=2.2, linestyle="--")
    axes.set_xlim(0, numbers[-1])
    axes.set_ylim(0, max(1.06, *shares))
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "cap"])
    last_round = points[-1][0]
    axes.set_xticks([1, last_round] if last_round > 1 else [1], ["1", f"round {last_round}"][-min(last_round, 2) :])
    axes.get_xticklabels()[-1].set_horizontalalignment("right" if last_round > 1 else "center")


def _figure(*, height: int) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415  # half a second, only where something is drawn

    figure = Figure(figsize=(_WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
    figure.patch.set_visible(False)
    return figure


def _canvas(*, height: int, left: int, right: int, top: int, bottom: int) -> "tuple[Figure, Axes]":
    """A figure with one frame in it; margins in units of the view box."""
    figure = _figure(height=height)
    area = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (top + bottom) / height)
    return figure, _bare(figure.add_axes(area))


def _bare(axes: "Axes") -> "Axes":
    """Take the box away and leave a floor and labels."""
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SENTINELS["muted"])
    axes.tick_params(colors=_SENTINELS["muted"], labelcolor=_SENTINELS["ink"], labelsize=_FONT_SIZE, length=0, pad=7)
    return axes


def _round_axis(axes: "Axes", last_round: int) -> None:
    """Ticks at whole rounds, at most about eight of them, always with the last."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, last_round) if last_round <= step * _MOST_TICKS)
    ticks = [number for number in range(step, last_round + 1, step) if last_round - number >= step / 2]
    axes.set_xticks([*([1] if step > 2 else []), *ticks, last_round])  # noqa: PLR2004  # a 1 beside a 2 is clutter
    axes.set_xlabel("round", color=_SENTINELS["muted"], fontsize=_FONT_SIZE, labelpad=3)


def _value_axis(
    axes: "Axes", values: Iterable[float], formatted: Callable[[float], str], *, vertical: bool
) -> tuple[float, float]:
    """Limits and ticks around the values, at round numbers; a score's axis need not start at zero."""
    known = list(values)
    spread = max(max(known) - min(known), 0.04)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if spread <= step * _MOST_STEPS)
    low = max(0.0, int((min(known) - 0.15 * step) / step) * step)
    high = min(1.0, -int(-(max(known) + 0.15 * step) // step) * step)
    ticks = [low + index * step for index in range(round((high - low) / step) + 1)]
    set_ticks, set_limits = (axes.set_yticks, axes.set_ylim) if vertical else (axes.set_xticks, axes.set_xlim)
    set_ticks(ticks, [formatted(tick) for tick in ticks])
    pad = 0.03 * (high - low)
    set_limits(low - pad, high + pad)
    axes.grid(visible=True, axis="y" if vertical else "x", color=_SENTINELS["grid"], linewidth=1)
    return low - pad, high + pad


def _formatter(measure: Measure) -> Callable[[float], str]:
    return (lambda value: f"{value * 100:.0f}%") if measure == "accuracy" else (lambda value: f"{value:.2f}")


def _labels_at_the_right(axes: "Axes", labels: Sequence[tuple[str, str, float]]) -> None:
    """Name each line at its end, pushed apart so that no two names overlap."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height  # in units of the view box, as the figure has one dot per unit
    gap = (high - low) * _FONT_SIZE * 1.2 / height
    ordered = sorted(labels, key=lambda label: label[2])
    for (name, colour, _), place in zip(ordered, _apart([value for *_, value in ordered], gap=gap), strict=True):
        axes.annotate(
            name,
            (1, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=_SENTINELS[colour],
            fontsize=_FONT_SIZE,
            fontweight="bold",
            annotation_clip=False,
        )


def _apart(values: Sequence[float], *, gap: float) -> list[float]:
    """Move ascending values apart to at least `gap`, each cluster staying centred where it was."""
    clusters: list[tuple[float, list[float]]] = []  # (centre, members)
    for value in values:
        members = [value]
        while clusters:
            centre, previous = clusters[-1]
            middle = sum(members) / len(members)
            if middle - centre >= gap * (len(members) + len(previous)) / 2:
                break
            members = [*previous, *members]
            clusters.pop()
        clusters.append((sum(members) / len(members), members))
    return [
        centre + (index - (len(members) - 1) / 2) * gap for centre, members in clusters for index in range(len(members))
    ]


def _label(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _rounds_in_words(run: Run, curves: Mapping[str, Mapping[int, float]], measure: Measure) -> str:
    show = words.percent if measure == "accuracy" else words.three_decimals
    parts = []
    for series in series_of(run):
        if points := curves.get(series.key):
            first, last = min(points), max(points)
            parts.append(
                f"{series.name} from {show(points[first])} in round {first} to {show(points[last])} in round {last}"
            )
        elif (level := _measured(run.final.get(series.key), measure)) is not None:
            parts.append(f"{series.name} {show(level)}")
    return f"Line chart of {'accuracy' if measure == 'accuracy' else 'AUC'} per round: {'; '.join(parts)}."


def _holders_in_words(run: Run, found: Sequence[tuple[Series, Mapping[str, float]]], measure: Measure) -> str:
    show = words.percent if measure == "accuracy" else words.three_decimals
    rows = [
        f"{holder.name}: "
        + (
            ", ".join(f"{series.name} {show(points[holder.id])}" for series, points in found if holder.id in points)
            or "not measured"
        )
        for holder in run.holders
    ]
    return f"Dot plot of {'accuracy' if measure == 'accuracy' else 'AUC'} per data holder. {'; '.join(rows)}."


def _as_inline_svg(figure: "Figure", *, identity: str, alternative: str) -> str:
    """Draw a figure as an SVG element fit to stand in a page of its own colours, fonts and content policy."""
    import matplotlib as mpl  # noqa: PLC0415  # as in _figure
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.text import Text  # noqa: PLC0415

    drawing = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": identity}), warnings.catch_warnings():
        # A name in a script that matplotlib's own font lacks is laid out a little off; the browser's font draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # a holder's name with dollar signs is a name, not a formula
        FigureCanvasSVG(figure)
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(drawing.getvalue())  # noqa: S314  # written by the line above, not by a user
    for element in list(root.iter()):
        for child in [child for child in element if child.tag in {f"{_SVG}metadata", f"{_SVG}style"}]:
            element.remove(child)
        _retouch(element, identity=identity)
    view_box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"class": "chart", "viewBox": view_box, "role": "img", "aria-label": alternative})
    return re.sub(r"\s*\n\s*", " ", ET.tostring(root, encoding="unicode"))


def _retouch(element: ET.Element, *, identity: str) -> None:
    """Give one element its HTML name, an identifier unique in the page, and colours and fonts from the page's CSS."""
    element.tag = element.tag.removeprefix(_SVG)
    target = element.attrib.pop(_HREF, None)
    if target is not None:
        element.set("href", f"#{identity}-{target.removeprefix('#')}")
    if (own := element.get("id")) is not None:
        element.set("id", f"{identity}-{own}")
    if (clip := element.get("clip-path")) is not None:
        element.set("clip-path", clip.replace("url(#", f"url(#{identity}-"))
    if (style := element.get("style")) is not None:
        pairs = (declaration.partition(":")[::2] for declaration in style.split(";") if declaration.strip())
        kept = {name.strip(): value.strip() for name, value in pairs if name.strip() != "font-family"}
        element.set("style", "; ".join(f"{name}: {_CSS_VARIABLES.get(value, value)}" for name, value in kept.items()))
