"""Rows of table robustness -> ``robustness.png`` and ``.svg``: scores against severity."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.evaluate.statistics import Interval
from pipeline.report.ablation import FilledRow
from pipeline.report.forms import RANKINGS
from pipeline.report.tables import (
    ALL_VIDEOS,
    BASE,
    CLEAN,
    QUALITY,
    SCALED,
    condition_of,
    severity_of,
)
from pipeline.show import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = ("robustness.png", "robustness.svg")
DPI = 150
PANEL_INCHES = (3.0, 2.8)
# Colours of Okabe and Ito, which the colour-blind tell apart; markers and dashes tell them in grey.
STYLES = {
    BASE[1]: ("base", "#000000", "o", "-"),
    SCALED[1]: ("standardised input", "#0072B2", "s", "--"),
    QUALITY[1]: ("standardised input, frame quality as a prior", "#D55E00", "^", ":"),
}
UNKNOWN = Interval(math.nan, math.nan, math.nan)
DODGE = 0.015  # of a panel's width, between the bars of two lines


@dataclass(frozen=True)
class _Panel:
    """One condition: where its subsets are on the axis."""

    label: str
    places: dict[str, float]  # subset -> severity
    names: tuple[str, ...] = ()  # of the places, if they are no numbers


def draw_curves(rows: Sequence[FilledRow], header: Mapping[str, str]) -> dict[str, bytes]:
    """WAR and average precision of influence against severity, one column of panels per condition.

    Bars are 95 % intervals. ``header`` says what the rows were made from, as in the tables. The
    same rows give the same bytes.
    """
    from matplotlib.figure import Figure

    with drawing():
        panels = _panels([line.row.subset for line in rows])
        located = any(line.precisions for line in rows)
        width, height = PANEL_INCHES
        size = (width * max(len(panels), 2), height * (1 + located) + 1)
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(1 + located, len(panels), sharex="col", sharey="row", squeeze=False)
        for panel, column in zip(panels, axes.T, strict=True):
            _draw(panel, rows, column)
        axes[0, 0].set_ylabel("WAR (%)")
        if located:
            axes[1, 0].set_ylabel(RANKINGS["logit"])
        title = (
            show(f"TG-DFER on videos that are harder to see: {header['data']}"),
            show(f"{header['protocol']}; {header['reported']}; bars: 95 % intervals"),
        )
        figure.suptitle("\n".join(title), fontsize="medium")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return {name: file_of(figure, name) for name in CURVES}


@contextmanager
def drawing() -> Iterator[None]:
    """As ``plain_names``; the same figure gives the same bytes, and letters of an SVG stay text."""
    from matplotlib import rc_context

    with plain_names(), rc_context({"svg.hashsalt": "tgdfer", "svg.fonttype": "none"}):
        yield


@contextmanager
def plain_names() -> Iterator[None]:
    """Draw names from outside as they are: ``$`` begins no formula, letters that the font lacks are
    boxes and no warnings.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def file_of(figure: "Figure", name: str) -> bytes:
    """A figure as the bytes of a file, SVG or PNG by the end of its name."""
    data = io.BytesIO()
    metadata = {"Date": None} if name.endswith(".svg") else {}
    figure.savefig(data, format=name.rpartition(".")[2], dpi=DPI, metadata=metadata)
    return data.getvalue()


def _panels(subsets: Sequence[str]) -> list[_Panel]:
    """Graded conditions by their severity, then all other subsets in one panel."""
    reference = [CLEAN] if CLEAN in subsets else []
    graded: dict[str, dict[str, float]] = {}
    for subset in subsets:
        name, severity = severity_of(subset)
        if severity is not None:
            graded.setdefault(name, dict.fromkeys(reference, condition_of(name).clean))
            graded[name][subset] = severity
    panels = [_Panel(_axis_label(name), places) for name, places in graded.items()]
    others = [name for name in dict.fromkeys(subsets) if severity_of(name)[1] is None]
    if len(others) > len(reference) or not panels:
        places = {name: float(place) for place, name in enumerate(others)}
        panels.append(_Panel("subset", places, tuple(show(n or ALL_VIDEOS) for n in others)))
    return panels


def _axis_label(name: str) -> str:
    condition = condition_of(name)
    return show(condition.text) + (f" ({condition.unit.strip()})" if condition.unit else "")


def _draw(panel: _Panel, rows: Sequence[FilledRow], column: "Sequence[Axes]") -> None:
    """WAR into the first axes, the average precision of influence into the second, if any."""
    wide = max(panel.places.values()) - min(panel.places.values())
    for number, (cells, (label, color, marker, dashes)) in enumerate(STYLES.items()):
        style = {"label": label, "color": color, "marker": marker}
        style["linestyle"] = "none" if panel.names else dashes
        lines = {line.row.subset: line for line in rows if line.row.cells[2:] == cells}
        shift = DODGE * (number - 1) * wide
        places = [place + shift for name, place in panel.places.items() if name in lines]
        found = [lines[subset] for subset in panel.places if subset in lines]
        _plot(column[0], places, [line.pooled.get("WAR") for line in found], 100, style)
        if len(column) > 1:
            precisions = [line.precisions.get("logit") for line in found]
            _plot(column[1], places, precisions, 1, style)
    severities = [*panel.places.values()]
    column[-1].set_xlabel(panel.label)
    column[-1].set_xticks(severities, panel.names or [f"{own:g}" for own in severities])
    if panel.names:
        column[-1].tick_params("x", rotation=90)
    if severities[0] > severities[-1]:
        column[-1].invert_xaxis()  # it is hardest on the right
    for axes in column:
        axes.grid(alpha=0.3)


def _plot(
    axes: "Axes",
    places: Sequence[float],
    found: Sequence[Interval | None],
    scale: float,
    style: Mapping[str, Any],
) -> None:
    """A line through the values, with a bar for each interval; None leaves a gap."""
    known = [own or UNKNOWN for own in found]
    below = [scale * max(own.value - own.low, 0) for own in known]
    above = [scale * max(own.high - own.value, 0) for own in known]
    axes.errorbar(
        places,
        [scale * own.value for own in known],
        (below, above),
        capsize=2,
        markersize=4,
        linewidth=1.2,
        **style,
    )
