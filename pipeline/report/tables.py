"""Ablation tables as Python lists of rows: what each row changes, and on which videos it is scored.

A row may be scored on a subset of the test videos, in folds of its own.
"""

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, get_args

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import (
    MethodConfig,
    effective,
    known_keys,
    method_from,
    parse_setting,
    unknown_setting,
)
from pipeline.evaluate.influence import Influence

VARIED = "varied"  # the table of settings that a command names
LIST = "list"  # in place of names of rows: show all of them
ROWS_MAX = 200  # of a table of varied settings
REGRESSION = "regression"  # the baseline that is searched first, see train/regressions.py


@dataclass(frozen=True)
class FrameChoice:
    """Predict from a few frames of a trained run, those of highest or lowest influence."""

    influence: Literal["highest", "lowest"]
    frames: int
    by: Influence = "logit"


@dataclass(frozen=True)
class TableRow:
    """One row: its name in the paper, the cells that describe it, the settings it changes."""

    name: str
    cells: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    choice: FrameChoice | None = None  # None: all frames, as trained
    subset: str = ""  # of the test videos, on which it is scored; "": all
    folds: tuple[str, ...] = ()  # (): those of the command
    baseline: str = ""  # a method of evaluate/baselines.py, of which there are no runs
    against: "TableRow | None" = None  # the row that it is compared with; None: the table's main

    def method(self, base: MethodConfig) -> MethodConfig:
        """``base`` with this row's settings."""
        merged = base.model_dump()
        for table, values in self.settings.items():
            merged[table] = {**merged[table], **values}
        return method_from(merged, f"row {self.name}")


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of ours without reported figures."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    main: TableRow = TableRow("main setting", ())  # the row that differences refer to
    differences: tuple[str, ...] = ("WAR",)  # UAR, WAR and names of classes, for their recall
    recalls: tuple[str, ...] = ()  # classes whose recall is shown, where the data set has them
    rankings: tuple[Influence, ...] = ()  # of frames, whose average precision is shown
    dataset: str = ""  # a rendered set that has the subsets and folds of its rows
    tuned: bool = False  # learning rates are chosen for every row and fold, on held-out videos
    counts: str = ""  # a known data set, from whose recalls by class the reported scores follow
    narrowed: bool = False  # to rows that were asked for; what they are compared with may be absent

    @property
    def by_subset(self) -> bool:
        """Whether its rows are scored on subsets of the test videos."""
        return any(row.subset for row in self.rows)

    @property
    def has_references(self) -> bool:
        """Whether rows are compared with others than the main one."""
        return any(row.against for row in self.rows)

    def reference(self, row: TableRow) -> TableRow:
        """The row that ``row`` is compared with."""
        return row.against or self.main


DEPTHS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
DEPTHS += [(1, 7), (7, 1), (7, 7)]

TABLE3 = Table(
    "table3",
    "Depths of the multi-grained temporal network (Table 3 of the paper)",
    ("fine", "coarse"),
    tuple(
        TableRow(
            letter,
            (str(fine or "none"), str(coarse or "none")),
            {"temporal": {"fine_depth": fine, "coarse_depth": coarse}},
        )
        for letter, (fine, coarse) in zip("abcdefghijkl", DEPTHS, strict=True)
    ),
)

# (width, stride); "stride X" in the paper means non-overlapping windows.
WINDOWS = [(2, 2), (4, 4), (8, 8), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (4, 3)]

TABLE4 = Table(
    "table4",
    "Stride and width of the windows (Table 4 of the paper)",
    ("stride", "window width"),
    tuple(
        TableRow(
            f"w{width} s{stride}",
            ("non-overlapping" if stride == width else str(stride), str(width)),
            {"temporal": {"window": width, "stride": stride}},
        )
        for width, stride in WINDOWS
    ),
)

TEXTS = [
    (("[learnable] " if learnable else "") + text, text, learnable)
    for learnable in (False, True)
    for text in ("class", "descriptors")
]
PROMPTS = [(*text, visual) for text in TEXTS for visual in ("none", "add", "prepend")]

TABLE5 = Table(
    "table5",
    "Visual prompt with different fine texts (Table 5 of the paper)",
    ("text prompt", "visual prompt"),
    tuple(
        TableRow(
            letter,
            (shown, visual),
            {
                "prompts": {"fine_text": text, "fine_learnable": learnable},
                "label": {"visual_prompt": visual},
            },
        )
        for letter, (shown, text, learnable, visual) in zip("abcdefghijkl", PROMPTS, strict=True)
    ),
)

TABLE6 = Table(
    "table6",
    "Output from the frames of highest and lowest influence (Table 6 of the paper)",
    ("influence", "frames"),
    tuple(
        TableRow(f"{influence} {count}", (influence, str(count)), {}, FrameChoice(influence, count))
        for influence in ("highest", "lowest")
        for count in (1, 2, 3)
    ),
)

ONE_VIEW = TableRow("one view", ("1",), {"optimiser": {"views": 1}})

VIEWS = Table(
    "views",
    "Number of augmented views to train on (not in the paper)",
    ("views",),
    (
        ONE_VIEW,
        *(TableRow(f"{n} views", (str(n),), {"optimiser": {"views": n}}) for n in (2, 4, 8)),
    ),
    main=ONE_VIEW,
)

INFLUENCE = Table(
    "influence",
    "Output from the most influential frames, by other measures of influence (not in the paper)",
    ("influence", "frames"),
    tuple(
        TableRow(f"{by} {count}", (by, str(count)), {}, FrameChoice("highest", count, by))
        for by in get_args(Influence)
        for count in (1, 3)
    ),
)

# One ingredient per row, added to the base.
INGREDIENTS: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("none: the base", {}),
    ("layer_norm", {"input": {"scale": "layer_norm"}}),
    ("standardise", {"input": {"scale": "standardise"}}),
    ("whiten", {"input": {"scale": "whiten"}}),
    ("centred texts", {"input": {"centre_text": True}}),
    ("temporal network begins as the identity", {"temporal": {"init": "identity"}}),
    ("labels begin as the coarse text", {"label": {"init": "identity"}}),
    ("both", {"temporal": {"init": "identity"}, "label": {"init": "identity"}}),
    ("residual", {"temporal": {"residual": True}}),
    ("positions of std 0.2", {"temporal": {"positions_std": 0.2}}),
    ("temperature 0.05", {"label": {"temperature": 0.05}}),
    ("AdamW, rates of 0.001", {"optimiser": {"kind": "adamw", "lr": 1e-3, "lr_prompts": 1e-3}}),
    ("cosine schedule", {"optimiser": {"schedule": "cosine"}}),
    ("average of the weights", {"optimiser": {"average": "ema"}}),
]

INPUT = Table(
    "input",
    "Conditioning of input, start and optimiser, one at a time (not in the paper)",
    ("changed",),
    tuple(
        TableRow(letter, (title,), settings)
        for letter, (title, settings) in zip("abcdefghijklmn", INGREDIENTS, strict=True)
    ),
    differences=("UAR", "WAR"),
)


def _paper(**names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The paper's values of the named settings of some tables of settings."""
    values = MethodConfig().model_dump()
    return {table: {name: values[table][name] for name in own} for table, own in names.items()}


# What each row of `without` sets in a base such as tuned; what changes nothing in it is left out.
TAKEN: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("scaled input", _paper(input=("scale",))),
    ("centred texts", _paper(input=("centre_text",))),
    ("depths", _paper(temporal=("fine_depth", "coarse_depth"))),
    ("start as the identity", _paper(temporal=("init",), label=("init",))),
    ("size of the positions", _paper(temporal=("positions_std",))),
    ("pooling", _paper(label=("pooling", "top_k"))),
    ("temperature", _paper(label=("temperature",))),
    ("optimiser and its rates", _paper(optimiser=("kind", "lr", "lr_prompts", "weight_decay"))),
    ("schedule", _paper(optimiser=("schedule", "warm_up"))),
    ("label smoothing", _paper(optimiser=("label_smoothing",))),
    ("visual prompt", {"label": {"visual_prompt": "none"}}),
    ("epochs", _paper(optimiser=("epochs",))),
    ("windows", _paper(temporal=("window", "stride"))),
    ("residual", _paper(temporal=("residual",))),
    ("dropout", _paper(temporal=("dropout",))),
    ("average of the weights", _paper(optimiser=("average",))),
]

WITHOUT = Table(
    "without",
    "One ingredient of the base at a time as in the paper (for --config tuned)",
    ("without",),
    (
        TableRow("base", ("nothing",)),
        *(
            TableRow(letter, (title,), settings)
            for letter, (title, settings) in zip("abcdefghijklmnop", TAKEN, strict=True)
        ),
    ),
    differences=("UAR", "WAR"),
)

LONG_FRAMES = (16, 32, 64, 128)
# (fine, coarse) depths; without either, nothing in the network knows the order of the frames.
LONG_DEPTHS = ((0, 0), (0, 1), (0, 3), (0, 7), (1, 1))

LONG_ROWS = tuple(
    TableRow(
        f"{frames} frames, {fine} fine, {coarse} coarse" + (f", {keys} keys" if keys else ""),
        (str(frames), str(fine or "none"), str(coarse or "none"), str(keys or "all")),
        {
            "input": {"frames": frames},
            "temporal": {"fine_depth": fine, "coarse_depth": coarse, "coarse_keys": keys},
        },
    )
    for frames, (fine, coarse), keys in (
        *product(LONG_FRAMES, LONG_DEPTHS, (0,)),
        *product((64, 128), ((0, 1), (0, 3)), (16,)),
    )
)

LONG = Table(
    "long",
    "Number of frames and depth where the order of the frames matters (not in the paper)",
    ("frames", "fine", "coarse", "keys"),
    LONG_ROWS,
    main=next(row for row in LONG_ROWS if row.cells[:3] == ("128", "none", "none")),
    differences=("UAR", "WAR"),
)

# (oversample, loss and its settings, text_rarity); the last row corrects one half by each.
IMBALANCE_ROWS: list[tuple[float, dict[str, Any], float]] = [
    (0.0, {}, 0.0),
    (0.5, {}, 0.0),
    (1.0, {}, 0.0),
    (0.0, {"loss": "class_balanced"}, 0.0),
    (0.0, {"loss": "logit_adjusted"}, 0.0),
    (0.0, {}, 1.0),
    (0.5, {}, 1.0),
    (0.0, {"loss": "logit_adjusted"}, 1.0),
    (0.5, {"loss": "logit_adjusted", "adjust_tau": 0.5}, 0.0),
]

IMBALANCE = Table(
    "imbalance",
    "Remedies for rare classes (not in the paper)",
    ("oversample", "loss", "text rarity"),
    tuple(
        TableRow(
            letter,
            (f"{share:g}", " ".join(map(str, loss.values())) or "cross_entropy", f"{rarity:g}"),
            {"optimiser": {"oversample": share, "text_rarity": rarity, **loss}},
        )
        for letter, (share, loss, rarity) in zip("abcdefghi", IMBALANCE_ROWS, strict=True)
    ),
    differences=("UAR", "WAR", "disgust", "fear"),
    recalls=("disgust", "fear"),
)

CONTROLS = [("trained", "real"), ("trained", "permuted"), ("trained", "orthogonal")]
CONTROLS += [("random", "real")]

TEXT_ROWS = tuple(
    TableRow(
        letter,
        (tower, texts, "learnable" if learnable else "plain"),
        {"prompts": {"tower": tower, "texts": texts, "fine_learnable": learnable}},
    )
    for letter, ((tower, texts), learnable) in zip(
        "abcdefgh", product(CONTROLS, (True, False)), strict=True
    )
)

TEXT = Table(
    "text",
    "What the language model adds (not in the paper)",
    ("text tower", "class texts", "fine prompts"),
    # Each control is compared with the real texts in the same kind of prompt.
    (*TEXT_ROWS[:2], *(replace(r, against=TEXT_ROWS[n % 2]) for n, r in enumerate(TEXT_ROWS[2:]))),
    main=TEXT_ROWS[0],
    differences=("UAR", "WAR"),
)


@dataclass(frozen=True)
class Condition:
    """What makes the videos of a subset hard; subsets are named after it and its severity."""

    text: str
    unit: str
    clean: float  # the severity of a video as it is


CONDITIONS = {
    "hidden": Condition("face hidden", " % of the face", 0),
    "passing": Condition("60 % of the face hidden", " % of the frames", 0),
    "yaw": Condition("head turned", "°", 0),
    "blur": Condition("blur", " px", 0),
    "dark": Condition("brightness", " %", 100),
}
CLEAN = "clean"  # the subset of the videos as they are
ALL_VIDEOS = "all videos"


def severity_of(subset: str) -> tuple[str, float | None]:
    """The condition that the name of a subset tells, and its severity if it tells that too.

    >>> severity_of("hidden_15"), severity_of("low_intensity")
    (('hidden', 15.0), ('low_intensity', None))
    """
    graded = re.fullmatch(r"(.+)_(\d{1,9})", subset)
    return (graded[1], float(graded[2])) if graded else (subset, None)


def condition_of(name: str) -> Condition:
    """A condition by the name that subsets have of it; any other is called by its name."""
    return CONDITIONS.get(name, Condition(name, "", 0))


# (name, its cells, settings). Quality is measured by the statistics of the training frames, so the
# remedy is compared with the same scaling without it.
Remedy = tuple[str, tuple[str, str], dict[str, dict[str, Any]]]
_STANDARDISE = {"input": {"scale": "standardise"}}
BASE: Remedy = ("", ("base", "base"), {})
SCALED: Remedy = (" scaled", ("standardise", "0"), _STANDARDISE | {"label": {"quality": 0.0}})
QUALITY: Remedy = (" quality", ("standardise", "1"), _STANDARDISE | {"label": {"quality": 1.0}})


def robustness(subsets: Collection[str]) -> Table:
    """Table ``robustness`` of these subsets: each compared with the clean videos, or with all."""
    easy = CLEAN if CLEAN in subsets else ""
    rows = []
    for subset in sorted({easy, *subsets}, key=_hardness):
        for remedy in (BASE, SCALED, QUALITY):
            against = _remedied(subset, SCALED) if remedy is QUALITY else _remedied(easy, remedy)
            rows.append(replace(_remedied(subset, remedy), against=against))
    return Table(
        "robustness",
        "Videos that are harder to see, and frame quality as a prior (not in the paper)",
        ("condition", "severity", "input scale", "frame quality"),
        tuple(rows),
        differences=("UAR", "WAR"),
        rankings=("logit", "attention"),
        dataset="faces-robust",
    )


def _remedied(subset: str, remedy: Remedy) -> TableRow:
    name, cells, settings = remedy
    described = (*_described(subset), *cells)
    return TableRow((subset or ALL_VIDEOS) + name, described, settings, subset=subset)


def _described(subset: str) -> tuple[str, str]:
    """Condition and severity as shown."""
    name, severity = severity_of(subset)
    if severity is None:
        return name or ALL_VIDEOS, "–"
    condition = condition_of(name)
    return condition.text, f"{severity:g}{condition.unit}"


def _hardness(subset: str) -> tuple[int, str, float]:
    """Sorts subsets: all or clean videos, known conditions and then others, from mild to severe."""
    name, severity = severity_of(subset)
    known = ["", CLEAN, *CONDITIONS]
    place = known.index(name) if name in known else len(known)
    return place, name, abs((severity or 0) - condition_of(name).clean)


ROBUSTNESS = robustness(
    [
        CLEAN,
        *(f"hidden_{percent}" for percent in (15, 30, 45, 60)),
        *(f"passing_{percent}" for percent in (25, 50, 75)),
        *(f"yaw_{degrees}" for degrees in (15, 30, 45, 60)),
        *(f"blur_{px}" for px in (1, 2, 4)),
        *(f"dark_{percent}" for percent in (50, 25, 10)),
    ]
)

POPULATIONS = {
    "skin": ("light", "dark"),
    "age": ("young", "old"),
    "glasses": ("no_glasses", "glasses"),
}


def _crossed(attribute: str, trained: str, tested: str) -> TableRow:
    name, folds = f"{trained} on {tested}", (f"{trained}-1", f"{trained}-2")
    return TableRow(name, (attribute, trained, tested), subset=tested, folds=folds)


def _populations(attribute: str, values: tuple[str, str]) -> list[TableRow]:
    """Each value trained and tested on each.

    A network is compared with that of the people it is tested on, the first value's own network
    with the second's: the gap between the two populations.
    """
    gap = {values[0]: values[1]}
    rows = []
    for trained, tested in product(values, values):
        other = gap.get(tested, tested) if trained == tested else tested
        against = _crossed(attribute, other, other)
        rows.append(replace(_crossed(attribute, trained, tested), against=against))
    return rows


POPULATION = Table(
    "population",
    "Trained on one population, tested on another (not in the paper)",
    ("attribute", "trained on", "tested on"),
    tuple(row for own in POPULATIONS.items() for row in _populations(*own)),
    differences=("UAR", "WAR"),
    dataset="faces-people",
)

EMOTIONS = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")


def _head(name: str, what: str, kind: str, **more: Mapping[str, Any]) -> TableRow:
    return TableRow(name, (what,), {"head": {"kind": kind}, **more})


# Named as in the paper where it has the system.
_SYSTEMS = (
    TableRow("zero-shot by names", ("nothing trained",), baseline="zero-shot by names"),
    TableRow("zero-shot by templates", ("nothing trained",), baseline="zero-shot by templates"),
    TableRow("zero-shot by sentences", ("nothing trained",), baseline="zero-shot by sentences"),
    TableRow("class means", ("mean of the frames",), baseline="class means"),
    TableRow(REGRESSION, ("searched",), baseline=REGRESSION),
    _head("MLP", "mean of the frames", "mlp"),
    _head("ResNet18-LSTM", "its LSTM", "bilstm"),
    _head("Former-DFER", "its T-Former", "transformer"),
    _head("NR-DFERNet", "changes, filtered snippets", "nr_dfernet"),
    _head("DPCNet", "excitations, two paths", "dpcnet"),
    _head("EST", "its head", "est"),
    TableRow(
        "LOGO-Former",
        ("1 layer of its 4, over time",),
        {"head": {"kind": "logo_former", "layers": 1}},
    ),
    _head("AEN", "T-Former, groups, its guidance", "aen"),
    _head("IAL", "T-Former, its loss", "transformer", optimiser={"loss": "intensity_aware"}),
    _head("MIDAS", "T-Former, mixed pairs", "transformer", optimiser={"mixup": 1.0}),
    _head("M3DFEL", "its head", "m3dfel"),
    _head("CLIPER", "its learned texts", "cliper", prompts={"context_length": 4}),
    _head("DFER-CLIP", "its head", "dfer_clip", prompts={"fine_text": "descriptors"}),
    _head("TG-DFER without layers", "Table 3, row a", "tgdfer", **TABLE3.rows[0].settings),
    _head("TG-DFER", "the base", "tgdfer"),
)

TABLE1 = Table(
    "table1",
    "Systems of Table 1 of the paper on equal features",
    ("what is trained here",),
    _SYSTEMS,
    main=_SYSTEMS[-1],
    differences=("UAR", "WAR"),
    recalls=EMOTIONS,
    tuned=True,
    counts="dfew",
)
TABLE2 = replace(
    TABLE1,
    name="table2",
    title="Systems of Table 2 of the paper on equal features",
    recalls=(),
    counts="ferv39k",
)

_OTHERS = (
    _head("linear probe", "mean of the frames", "linear"),
    _head("EmoCLIP", "its head", "emoclip", prompts={"fine_text": "descriptors"}),
    _head("VadCLIP", "its adapter, best frames", "vadclip"),
    _head("S2D", "its adapter", "s2d"),
    _head("GRACE", "transport to phrases", "grace", prompts={"fine_text": "descriptors"}),
)
HEADS = replace(
    TABLE1,
    name="heads",
    title="Heads of systems that are in no table of the paper, on equal features",
    rows=(
        *(row for row in _SYSTEMS if row.name in ("class means", REGRESSION, "MLP")),
        *_OTHERS,
        _SYSTEMS[-1],
    ),
    recalls=(),
    counts="",
)

ENCODERS = Table(
    "encoders",
    "The same head on the features of several encoders (not in the paper)",
    ("D", "T", "weights"),
    (),  # one for each store
    differences=("UAR", "WAR"),
)


def rows_of_stores(stores: Sequence[Store]) -> Table:
    """Table ``encoders`` of stores that hold the same videos in the same folds.

    Differences refer to the first. Raises RefusedError for stores of other videos or folds, or with
    other missing videos.
    """
    rows: list[TableRow] = []
    for store in stores:
        if different := _differs(stores[0], store):
            raise RefusedError(
                f"{store.path} and {stores[0].path} differ in their {different}; extract the same "
                "data set in the same way with both encoders"
            )
        encoder = store.identity.encoder
        again = sum(row.name.partition(" #")[0] == encoder.name for row in rows)
        name = f"{encoder.name} #{again + 1}" if again else encoder.name
        digest = encoder.weights_sha256.rpartition(":")[2]
        cells = (str(store.dim), str(store.frames), digest[:8])
        rows.append(TableRow(name, cells))
    return replace(ENCODERS, rows=tuple(rows), main=rows[0])


def _differs(one: Store, other: Store) -> str:
    """In what two stores differ that should be the same for all encoders, if anything."""
    if list(one.ids) != list(other.ids) or list(one.labels) != list(other.labels):
        return "videos"
    if one.missing.keys() != other.missing.keys():
        return "missing videos"
    folds, others = ([(n, [*a], [*b]) for n, a, b in own.folds] for own in (one, other))
    return "folds" if folds != others else ""


ALL = [
    TABLE1,
    TABLE2,
    TABLE3,
    TABLE4,
    TABLE5,
    TABLE6,
    VIEWS,
    INFLUENCE,
    INPUT,
    WITHOUT,
    IMBALANCE,
    LONG,
    TEXT,
]
ALL += [ROBUSTNESS, POPULATION, ENCODERS, HEADS]
TABLES = {table.name: table for table in ALL}


def find_tables(names: Sequence[str]) -> list[Table]:
    """The named tables; raises RefusedError for an unknown name."""
    for name in names:
        if name not in TABLES:
            raise RefusedError(f"no table {name}; available: {', '.join(TABLES)}")
    return [TABLES[name] for name in names]


def choose_rows(
    tables: Sequence[Table], store: Store, base: MethodConfig, names: str | None = None
) -> list[Table]:
    """The tables as ``fit``, or what they have of the rows that are ``names``, as in "a,b".

    Raises RefusedError as ``fit``, and for a name that no row has.
    """
    if names is None:
        return [fit(table, store, base) for table in tables]
    wanted = _split(names, names_of_rows(tables, store, base))
    narrowed = (fit(table, store, base, wanted) for table in tables)
    return [table for table in narrowed if table.rows]


def names_of_rows(tables: Sequence[Table], store: Store, base: MethodConfig) -> list[str]:
    """Of all rows that the tables have for the store, whether they fit it or not."""
    return [row.name for table in tables for row in _of_store(table, store, base).rows]


def _split(names: str, known: Sequence[str]) -> list[str]:
    """Names between commas, some of which may be part of a known name.

    >>> _split("a, b, 2 keys", ["a", "b, 2 keys"])
    ['a', 'b, 2 keys']
    """
    found, parts = [], names.split(",")
    while parts:
        starts = {",".join(parts[:n]).strip(): n for n in range(1, len(parts) + 1)}
        name = max((own for own in starts if own in known), key=len, default="")
        if not name:
            raise RefusedError(f"--rows: no row {parts[0].strip()}{_nearest(parts[0], known)}")
        found.append(name)
        parts = parts[starts[name] :]
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    by_lower = {own.lower(): own for own in known}
    near = [by_lower[own] for own in difflib.get_close_matches(name.strip().lower(), by_lower)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return f"{hint} --rows {LIST} shows the names of all {len(known)}"


def fit(
    table: Table, store: Store, base: MethodConfig, names: Collection[str] | None = None
) -> Table:
    """The table with what the store and the base have, perhaps only the rows of these names.

    Raises RefusedError if the store lacks a subset or a fold that a row names, if a row's windows
    do not fit its frames, or if nothing differs from the paper in ``without``.
    """
    table = _of_store(table, store, base)
    if len(base.input.chosen(store.frames)) < store.frames:
        # Baselines are of all frames, so that they would not be on equal features.
        table = replace(table, rows=tuple(row for row in table.rows if not row.baseline))
    if names is not None:
        rows = tuple(row for row in table.rows if row.name in names)
        table = replace(table, rows=rows, narrowed=True)
    _refuse_misfits(table, store, base)
    folds = [name for name, _, _ in store.folds]
    for row in table.rows:
        lacking = [f"subset {row.subset}"] if row.subset not in ("", *store.subsets) else []
        lacking += [f"fold {name}" for name in row.folds if name not in folds]
        if lacking:
            raise RefusedError(
                f"{store.path} has no {lacking[0]}, which table {table.name} needs; make a store "
                f"that has it with: tgdfer extract --dataset {table.dataset}"
            )
    return table


def _of_store(table: Table, store: Store, base: MethodConfig) -> Table:
    """``robustness`` with a row for each subset, ``without`` with what differs from the paper."""
    if table is ROBUSTNESS and store.subsets:
        table = robustness(store.subsets)
    if table is WITHOUT:
        first, *taken = table.rows
        taken = [row for row in taken if effective(row.method(base)) != effective(base)]
        if all(row.cells == ("visual prompt",) for row in taken):
            raise RefusedError(
                "table without takes back what a base adds to the paper's setting, and this one "
                "adds nothing; name another with --config, such as tuned"
            )
        table = replace(table, rows=(first, *taken))
    return _on_features(table, store) if table.tuned else table


def _on_features(table: Table, store: Store) -> Table:
    """With the encoder in every row, and without zero-shot where it says nothing."""
    name = store.identity.encoder.name
    rows = tuple(
        replace(_with_votes(row, store), cells=(*row.cells, name))
        for row in table.rows
        if store.is_aligned or not row.baseline.startswith("zero-shot")
    )
    return replace(table, columns=(*table.columns, "encoder"), rows=rows)


def _with_votes(row: TableRow, store: Store) -> TableRow:
    """MIDAS mixes the shares of the votes, where there are any."""
    if row.name != "MIDAS" or not store.voted.any():
        return row
    optimiser = {**row.settings["optimiser"], "target": "votes"}
    return replace(row, settings={**row.settings, "optimiser": optimiser})


def _refuse_misfits(table: Table, store: Store, base: MethodConfig) -> None:
    """Refuse rows whose windows or heads do not fit the features, with the rows that do."""
    trained = [row for row in table.rows if not row.baseline]
    why = {row.name: _misfit(row.method(base), store) for row in trained}
    if misfits := {name: reason for name, reason in why.items() if reason}:
        name, reason = next(iter(misfits.items()))
        fitting = ",".join(row.name for row in table.rows if row.name not in misfits)
        remedy = f'take those that do: --rows "{fitting}"' if fitting else "change temporal.window"
        raise RefusedError(
            f"table {table.name}: {len(misfits)} of {len(table.rows)} rows do not fit "
            f"{store.path}, such as {name}: {reason}; {remedy}"
        )


def _misfit(method: MethodConfig, store: Store) -> str:
    frames = len(method.input.chosen(store.frames))
    if method.head.reads_texts and not store.has_texts:
        return "its head reads texts, and the store's encoder has no text tower"
    try:
        if method.head.kind == "tgdfer":
            method.temporal.tokens(frames)
        else:
            method.head.refuse_misfit(frames, store.dim)
    except RefusedError as error:
        return str(error).partition(";")[0]
    return ""


def vary(settings: Sequence[str]) -> Table:
    """A table of every combination of values, from ``KEY=[VALUE, ...]`` strings.

    Raises RefusedError for anything but a dotted key and a list of values.
    """
    names, choices = [], []
    for text in settings:
        name, values = parse_setting(text)
        if not isinstance(values, list) or not values or name.count(".") != 1:
            raise RefusedError(
                f"--vary {text}: expected KEY=[VALUE, VALUE, ...], e.g. "
                "--vary optimiser.lr=[0.003,0.01,0.03]"
            )
        if name not in known_keys():
            raise RefusedError(f"--vary {text}: {unknown_setting(name)}")
        names.append(name)
        choices.append(values)
    if math.prod(map(len, choices)) > ROWS_MAX:
        raise RefusedError(
            f"--vary: {math.prod(map(len, choices))} combinations of values, expected at most "
            f"{ROWS_MAX}; vary fewer settings at once"
        )
    rows = []
    for number, values in enumerate(product(*choices), 1):
        row: dict[str, dict[str, Any]] = {}
        for name, value in zip(names, values, strict=True):
            table, _, key = name.partition(".")
            row.setdefault(table, {})[key] = value
        rows.append(TableRow(str(number), tuple(map(str, values)), row))
    return Table(VARIED, "Varied settings (not in the paper)", tuple(names), tuple(rows))
