"""Draws lines over rounds as SVG, with what it shows in words for whoever does not see it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 44
_MARKS = ("circle", "square", "triangle", "diamond")
_COLOURS = 4
_TICKS = 4
_MOST_LABELS = 12


@dataclass(frozen=True)
class Line:
    """Points (round, value) with a name."""

    name: str
    points: tuple[tuple[float, float], ...]


def lines(series: Sequence[Line], *, title: str, last: int, low: float, high: float, axis: str = "Round") -> Markup:
    """A line chart. Series are told apart by mark and dash as well as by colour.

    Args:
        series: What is drawn; at most eight stay readable.
        title: What it shows.
        last: The last round of the axis.
        low: The lowest value shown.
        high: The highest value shown.
        axis: Name of the horizontal axis.
    """
    high = high if high > low else low + 1
    x = _scale(min(1, last), max(last, 2), _LEFT, _WIDTH - _RIGHT)
    y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(low, high, y), _rounds(last, x, axis)]
    for number, line in enumerate(series):
        parts.append(_line([(x(a), y(b)) for a, b in line.points], number))
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{parts}</svg>{legend}'
    ).format(w=_WIDTH, h=_HEIGHT, label=_spoken(series, title), parts=Markup("").join(parts), legend=_legend(series))


def scatter(points: Mapping[str, tuple[float, float]], *, title: str, x_name: str, y_name: str) -> Markup:
    """Named points of a privacy/utility plane: epsilon to the right, quality upwards."""
    step = _round_step(max([x for x, _ in points.values()] or [1.0]) * 1.1 / _TICKS)
    x_high = step * _TICKS
    values = [y for _, y in points.values()]
    low, high = (min(values) - 0.02, max(values) + 0.02) if values else (0.0, 1.0)
    x, y = _scale(0, x_high, _LEFT, _WIDTH - _RIGHT), _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(low, high, y)]
    parts.extend(_text(x(step * n), _HEIGHT - 22, f"{step * n:g}", "middle") for n in range(_TICKS + 1))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 3, x_name, "middle"))
    for number, (a, b) in enumerate(points.values()):
        parts.append(_mark(x(a), y(b), number, size=9))
    spoken = f"{title}. " + "; ".join(f"{n}: {x_name} {a:.2f}, {y_name} {b:.3f}" for n, (a, b) in points.items())
    return Markup('<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{s}">{p}</svg>{legend}').format(
        w=_WIDTH,
        h=_HEIGHT,
        s=spoken,
        p=Markup("").join(parts),
        legend=_legend([Line(name, (point,)) for name, point in points.items()]),
    )


def _round_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 0.1
    return next(float(f"{times * power:.1g}") for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9))


class _scale:  # noqa: N801 -- used as the function it stands for
    def __init__(self, a: float, b: float, to_a: float, to_b: float) -> None:
        self._a, self._span, self._to, self._by = a, (b - a) or 1.0, to_a, to_b - to_a

    def __call__(self, value: float) -> float:
        return self._to + (value - self._a) / self._span * self._by


def _grid(low: float, high: float, y: _scale) -> Markup:
    parts = []
    for step in range(_TICKS + 1):
        value = low + (high - low) * step / _TICKS
        parts.append(
            Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, _WIDTH - _RIGHT, y(value), y(value)
            )
        )
        parts.append(_text(_LEFT - 8, y(value) + 5, f"{value:.2f}", "end"))
    return Markup("").join(parts)


def _rounds(last: int, x: _scale, axis: str) -> Markup:
    step = max(1, -(-last // _MOST_LABELS))
    labels = [_text(x(number), _HEIGHT - 22, str(number), "middle") for number in range(1, last + 1, step)]
    return Markup("").join([*labels, _text((_LEFT + _WIDTH) / 2, _HEIGHT - 3, axis, "middle")])


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _line(points: Sequence[tuple[float, float]], number: int) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = Markup('<polyline class="s{} d{}" points="{}"/>').format(number % _COLOURS, number // _COLOURS, path)
    return drawn + Markup("").join(_mark(x, y, number) for x, y in points)


def _mark(x: float, y: float, number: int, *, size: float = 5) -> Markup:
    kind = _MARKS[number % len(_MARKS)]
    name = f"s{number % _COLOURS}"
    if kind == "circle":
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(name, x, y, size)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[kind]
    path = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)
    return Markup('<polygon class="{}" points="{}"/>').format(name, path)


def _legend(series: Sequence[Line]) -> Markup:
    items = Markup("").join(
        Markup('<li><svg class="key" viewBox="0 0 24 24" aria-hidden="true">{}</svg>{}</li>').format(
            _mark(12, 12, number, size=8), line.name
        )
        for number, line in enumerate(series)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _spoken(series: Sequence[Line], title: str) -> str:
    ends = "; ".join(f"{one.name}: {one.points[-1][1]:.3f}" for one in series if one.points)
    return str(escape(title)) + (f". Latest: {ends}" if ends else ". Nothing yet")
