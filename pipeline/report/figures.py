"""What networks say of videos -> figures, each as SVG and PNG, and in words.

Colours are those of Okabe and Ito, or get steadily darker or lighter, so that the colour-blind tell
them apart and a grey print does too. The same numbers give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.calibration import Reliability, RiskCoverage
from pipeline.evaluate.classes import ClassScores
from pipeline.evaluate.influence import Array
from pipeline.report.ablation import FilledRow
from pipeline.report.answer import describe
from pipeline.report.curves import CURVES, draw_curves, drawing, file_of
from pipeline.report.pooled import Pooled
from pipeline.report.tables import Table
from pipeline.show import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = dict[str, Any]  # of what matplotlib draws

LEADING, REFERENCE, OTHER, SECOND = "#0072B2", "#000000", "#999999", "#E69F00"
FAINT = "#595959"  # of text
FOLDER = "figures"
LABEL_LETTERS = 48
NUMBERED_CLASSES = 12  # a confusion matrix of more has no numbers
BAR_PX, GAP_PX = 12, 4  # below a strip
VIRIDIS = "viridis"


@dataclass(frozen=True)
class Picture:
    """A figure: the name of its files, what it shows, and the same in words."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes
    shows_frames: bool = False


@dataclass(frozen=True)
class Strip:
    """The T frames of a video, how much each speaks for a class, and how much it truly shows."""

    title: str
    frames_THWC: NDArray[np.uint8]
    influence_T: Array  # in [0, 1]
    intensity_T: Array | None = None  # in [0, 1]; None where nothing is known


def files_of(pictures: Sequence[Picture]) -> dict[str, bytes]:
    """The files of figures, by their names below the folder of a report."""
    named = [(f"{FOLDER}/{own.name}", own) for own in pictures]
    return {f"{n}.svg": own.svg for n, own in named} | {f"{n}.png": own.png for n, own in named}


def scaled(values_NT: Array) -> Array:
    """From the lowest, 0, to the highest, 1, along the last axis (eq. 12); 0 if all are equal."""
    low, high = values_NT.min(-1, keepdims=True), values_NT.max(-1, keepdims=True)
    spread = high - low
    out: Array = np.divide(values_NT - low, spread, out=np.zeros_like(values_NT), where=spread > 0)
    return out


def draw_forest(table: Table, rows: Sequence[FilledRow], leading: FilledRow | None) -> Picture:
    """The differences of a table in WAR, with their 95 % intervals."""
    with drawing():
        figure = _figure(7, 0.3 * len(rows) + 1.1)
        axes = figure.add_subplot()
        for place, line in enumerate(rows):
            own = line.differences.get("WAR")
            if own is None:
                place_of = axes.get_yaxis_transform()
                style: Style = {"color": FAINT, "style": "italic", "size": "small", "va": "center"}
                axes.text(0.01, place, f"runs: {line.n}", transform=place_of, **style)
                continue
            value, low, high = (100 * each for each in (own.value, own.low, own.high))
            sides = _sides(value, low, high)
            axes.errorbar(value, place, xerr=sides, capsize=3, **_emphasis(line is leading))
        axes.axvline(0, color=REFERENCE, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [_short(describe(line)) for line in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        other = "the row that each is compared with" if table.has_references else table.main.name
        axes.set_xlabel(show(f"WAR − {other} (percentage points, 95 % intervals)"))
        axes.grid(axis="x", alpha=0.3)
        known = [line for line in rows if line.differences.get("WAR") is not None]
        return _picture(
            figure,
            f"forest-{table.name}",
            f"{table.title}: differences in WAR. The filled square is the leading row.",
            "Forest plot. " + "; ".join(f"{line.row.name}: {_said(line)}" for line in known),
        )


def draw_learning(
    table: Table,
    curves: Mapping[str, Mapping[str, Array]],
    best: str,
    reference: str,
) -> Picture:
    """Loss and scores against epochs, of every row by its name; means over the runs of a row."""
    with drawing():
        names = [name for name in next(iter(curves.values())) if name != "epoch"]
        shown = [name for name in names if name.endswith(("loss", "_war"))]
        figure = _figure(3.6 * len(shown), 3.2)
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            scale = 1 if name.endswith("loss") else 100
            for row, own in curves.items():
                if name in own:
                    _plot_curve(axes, scale * own[name], row, best, reference)
            axes.set_xlabel("epoch")
            axes.set_ylabel(_metric_name(name))
            axes.grid(alpha=0.3)
        figure.legend(*_legend(figure), loc="outside lower center", ncols=3)
        own = curves[best]
        ends = (
            f"{_metric_name(name)} ends at {_last(own, name):.2f}" for name in shown if name in own
        )
        return _picture(
            figure,
            f"learning-{table.name}",
            f"{table.title}: learning curves, means over the runs of a row; the band spans the "
            "runs of the best row. No epoch is chosen by them.",
            f"Learning curves of {len(curves)} rows. Of {best}: {', '.join(ends)}.",
        )


def draw_confusion(pooled: Pooled, classes: Sequence[str]) -> Picture:
    """Shares of each true class by predicted class, of all folds and of each."""
    with drawing():
        folds = {f"fold {name}": own for name, own in pooled.confusions.items()}
        panels = {"all folds": pooled.scores.counts_KK} | (folds if len(folds) > 1 else {})
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = _figure(3.3 * columns, 3.4 * rows)
        every = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axes in every:
            axes.set_axis_off()
        for axes, (name, counts) in zip(every, panels.items(), strict=False):
            axes.set_axis_on()
            _draw_matrix(axes, counts, classes)
            axes.set_title(show(name), fontsize="medium")
        return _picture(
            figure,
            "confusion",
            "Confusion: per cent of each true class (rows) by predicted class (columns). An empty "
            "row is a class without a test video.",
            f"Confusion matrices. {_largest_confusion(pooled.scores.counts_KK, classes)}",
        )


def draw_classes(scores: ClassScores, classes: Sequence[str]) -> Picture:
    """Recall and F1 of each class."""
    with drawing():
        figure = _figure(6.5, 0.42 * len(classes) + 1.3)
        axes, places = figure.add_subplot(), np.arange(len(classes))
        recall_K, f1_K = (100 * np.nan_to_num(own) for own in (scores.recall_K, scores.f1_K))
        axes.barh(places - 0.19, recall_K, 0.38, label="recall", color=LEADING)
        hatched: Style = {"color": SECOND, "hatch": "///", "edgecolor": "white"}
        axes.barh(places + 0.19, f1_K, 0.38, label="F1", **hatched)
        counts = scores.videos_K.astype(int).tolist()
        names = [f"{_short(name)} ({own})" for name, own in zip(classes, counts, strict=True)]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent; in brackets: answers about videos of the class")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2)
        recalls = zip(classes, scores.recall_K, strict=True)
        told = (f"{name} {100 * own:.1f} %" for name, own in recalls if own == own)
        caption = "Recall and F1 of each class."
        return _picture(figure, "classes", caption, f"Recall: {', '.join(told)}.")


def draw_reliability(found: Reliability) -> Picture:
    """How often answers are right, against the probability that the networks gave them."""
    with drawing():
        figure = _figure(4.2, 4.6)
        axes, small = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 100], [0, 100], color=REFERENCE, linestyle="--", linewidth=0.8)
        known_B = found.videos_B > 0
        confidence_B, accuracy_B = (
            100 * own[known_B] for own in (found.confidence_B, found.accuracy_B)
        )
        axes.plot(confidence_B, accuracy_B, color=LEADING, marker="o")
        axes.set(ylabel="right (%)", ylim=(0, 100), xlim=(0, 100))
        widths_B = 100 * np.diff(found.edges)
        small.bar(100 * found.edges[:-1], found.videos_B, 0.9 * widths_B, align="edge", color=OTHER)
        small.set(xlabel="probability of the answer (%)", ylabel="answers")
        for own in (axes, small):
            own.grid(alpha=0.3)
        bins = zip(confidence_B, accuracy_B, strict=True)
        told = (f"{right:.0f} % at {sure:.0f} %" for sure, right in bins)
        return _picture(
            figure,
            "reliability",
            "Reliability: on the dashed line, probabilities would mean what they say. Expected "
            f"calibration error: {100 * found.ece:.1f} %.",
            f"Share of right answers by their probability: {', '.join(told)}.",
        )


def draw_risk(found: RiskCoverage) -> Picture:
    """How often answers are wrong, if only the most certain share of them is given."""
    with drawing():
        figure = _figure(4.6, 3.6)
        axes = figure.add_subplot()
        coverage_N, risk_N = (100 * own for own in (found.coverage_N, found.risk_N))
        axes.plot(coverage_N, risk_N, color=LEADING)
        axes.set(xlabel="answers given, the most certain first (%)", ylabel="wrong among them (%)")
        axes.set(xlim=(0, 100), ylim=(0, None))
        axes.grid(alpha=0.3)
        shares = (25, 50, 75, 100)
        told = (f"{np.interp(own, coverage_N, risk_N):.1f} % of {own} %" for own in shares)
        return _picture(
            figure,
            "risk-coverage",
            "Risk and coverage: errors among the most certain answers. The mean over all coverages "
            f"(AURC) is {100 * found.aurc:.1f} %.",
            f"Wrong among the most certain answers: {', '.join(told)}.",
        )


def draw_localisation(found: Mapping[str, tuple[Array, Array]]) -> Picture:
    """Precision against recall of the frames that rank highest; see ``precision_recall``."""
    with drawing():
        figure = _figure(4.6, 4)
        axes = figure.add_subplot()
        styles = zip(found, ((LEADING, "o", "-"), (SECOND, "s", "--")), strict=False)
        for name, (color, marker, dashes) in styles:
            precision, recall = (100 * own for own in found[name])
            style: Style = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4}
            axes.plot(recall, precision, label=name, **style)
        axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 102), ylim=(0, 102))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=2)
        first = (f"{name} {100 * own[0][0]:.1f} %" for name, own in found.items())
        return _picture(
            figure,
            "localisation",
            "Which frames show the label: precision and recall of the 1, 2, 3, … highest ranked "
            "frames, means over the test videos in which some but not all frames show it.",
            f"The highest ranked frame shows the label: by {', '.join(first)}.",
        )


def draw_strips(strips: Sequence[Strip]) -> Picture:
    """Frames of videos, below each its influence as a colour, and the truth where it is known."""
    with drawing():
        images = [_compose(strip) for strip in strips]
        shares = [image.shape[0] / image.shape[1] for image in images]
        figure = _figure(9, sum(9 * share + 0.35 for share in shares))
        rows = figure.subplots(len(strips), 1, squeeze=False, height_ratios=shares)
        for axes, strip, image in zip(rows.flat, strips, images, strict=True):
            axes.imshow(image, interpolation="antialiased")
            axes.set_title(show(strip.title), fontsize="small", loc="left")
            axes.set_axis_off()
        known = any(strip.intensity_T is not None for strip in strips)
        truth = " The grey bars below are the true intensity of the label." if known else ""
        return _picture(
            figure,
            "influence",
            "Influence of frames on the answer, scaled from the lowest (purple) to the highest "
            f"(yellow) of each video, as in Fig. 4 of the paper.{truth}",
            "Strips of frames. " + "; ".join(map(_strongest, strips)),
            shows_frames=True,
        )


def draw_contact_sheet(images: Mapping[str, Sequence[NDArray[np.uint8]]]) -> Picture:
    """Pictures of one size, [H, W, 3], by the class of their videos."""
    with drawing():
        most = max(map(len, images.values()))
        figure = _figure(0.8 * most + 1.4, 0.8 * len(images) + 0.2)
        rows = figure.subplots(len(images), 1, squeeze=False).flat
        for axes, (name, own) in zip(rows, images.items(), strict=True):
            height, width, _ = own[0].shape
            sheet = np.full((height, width * most, 3), 255, np.uint8)
            sheet[:, : width * len(own)] = np.concatenate(own, axis=1)
            axes.imshow(sheet, interpolation="antialiased")
            axes.set_ylabel(_short(name), rotation=0, ha="right", va="center", fontsize="small")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        counts = ", ".join(f"{len(own)} of {name}" for name, own in images.items())
        caption = "Contact sheet: the middle frame of some videos of each class."
        return _picture(figure, "contact-sheet", caption, f"Frames: {counts}.", shows_frames=True)


def draw_robustness(rows: Sequence[FilledRow], header: Mapping[str, str]) -> Picture:
    """As ``draw_curves``."""
    drawn = draw_curves(rows, header)
    caption = "Scores against severity, of the videos of all runs together, with 95 % intervals."
    alt = "The same numbers are in the table robustness."
    return Picture("robustness", caption, alt, drawn[CURVES[1]], drawn[CURVES[0]])


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _picture(
    figure: "Figure", name: str, caption: str, alt: str, shows_frames: bool = False
) -> Picture:
    svg, png = (file_of(figure, f"{name}.{end}") for end in ("svg", "png"))
    return Picture(name, caption, alt, svg, png, shows_frames)


def _emphasis(leads: bool) -> Style:
    color = LEADING if leads else REFERENCE
    marker = {"marker": "s"} if leads else {"marker": "o", "markerfacecolor": "white"}
    return {"color": color, "markersize": 5, "linestyle": "none", **marker}


def _sides(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _said(line: FilledRow) -> str:
    own = line.differences.get("WAR")
    return "–" if own is None else own.text("+.1f", 100)


def _short(text: str) -> str:
    shown = show(text)
    return shown if len(shown) <= LABEL_LETTERS else shown[: LABEL_LETTERS - 1] + "…"


def _plot_curve(axes: "Axes", values_RE: Array, row: str, best: str, reference: str) -> None:
    epochs, mean_E = range(1, values_RE.shape[1] + 1), values_RE.mean(0)
    if row == best:
        axes.fill_between(
            epochs, values_RE.min(0), values_RE.max(0), color=LEADING, alpha=0.2, linewidth=0
        )
        axes.plot(epochs, mean_E, color=LEADING, linewidth=2, label=f"{_short(row)} (best)")
    elif row == reference:
        axes.plot(epochs, mean_E, color=REFERENCE, linestyle="--", label=_short(row), zorder=3)
    else:
        axes.plot(epochs, mean_E, color=OTHER, linewidth=0.7, label="other rows", zorder=1)


def _legend(figure: "Figure") -> tuple[list[Any], list[str]]:
    """Every label once."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(reversed(labels), reversed(handles), strict=True))
    return [*once.values()][::-1], [*once][::-1]


def _last(curves: Mapping[str, Array], name: str) -> float:
    return float((1 if name.endswith("loss") else 100) * curves[name][:, -1].mean())


def _metric_name(name: str) -> str:
    """As in a table: ``test_war`` is "WAR, test (%)"."""
    part, _, metric = name.rpartition("_")
    return f"{part} {metric}" if metric == "loss" else f"{metric.upper()}, {part} (%)"


def _draw_matrix(axes: "Axes", counts: Array, classes: Sequence[str]) -> None:
    total = counts.sum(1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    names = [_short(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    if len(names) > NUMBERED_CLASSES:
        return
    for (true, predicted), value in np.ndenumerate(share):
        if value == value:
            color = "white" if value > 55 else "black"
            style: Style = {"ha": "center", "va": "center", "fontsize": "x-small"}
            axes.text(predicted, true, f"{value:.0f}", color=color, **style)


def _largest_confusion(counts: Array, classes: Sequence[str]) -> str:
    wrong = counts - np.diag(np.diagonal(counts))
    if not wrong.any():
        return "No video was confused."
    true, predicted = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
    return (
        f"Most often, {classes[true]} was taken for {classes[predicted]}: "
        f"{int(wrong.max())} of {int(counts[true].sum())} answers."
    )


def _compose(strip: Strip) -> NDArray[np.uint8]:
    """Frames side by side, their colours, and bars of the truth: [H, W, 3]."""
    import matplotlib

    frames, _, width, _ = strip.frames_THWC.shape
    picture = np.concatenate(strip.frames_THWC, axis=1)
    shades = matplotlib.colormaps[VIRIDIS](strip.influence_T, bytes=True)[:, :3]
    colours = np.repeat(np.repeat(shades[None], BAR_PX, 0), width, 1)
    gap = np.full((GAP_PX, frames * width, 3), 255, np.uint8)
    parts = [picture, gap, colours]
    if strip.intensity_T is not None:
        heights = np.rint(2 * BAR_PX * strip.intensity_T).astype(int)
        above = np.arange(2 * BAR_PX, 0, -1)[:, None] > np.repeat(heights, width)
        bars = np.where(above[..., None], 235, 90).astype(np.uint8)
        parts += [gap, np.repeat(bars, 3, 2)]
    return np.concatenate(parts)


def _strongest(strip: Strip) -> str:
    return f"{strip.title}: strongest in frame {int(strip.influence_T.argmax()) + 1}"
