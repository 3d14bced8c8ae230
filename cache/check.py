"""A store -> what it is, what is wrong with it, what to redo, how it differs from another.

Every file of the store is accounted for: either it is as committed, or there is a finding.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache.chunks import rows_name, view_files, zarr_metadata
from cache.errors import DamagedError
from cache.files import (
    canonical_json,
    is_scratch,
    is_whole_line,
    locked,
    read_records,
    remove_file,
    sha256,
    sha256_file,
    storage_errors,
)
from cache.identity import Identity, flatten
from cache.journal import (
    FINAL,
    Commits,
    Files,
    Fingerprint,
    Place,
    all_unchanged,
    encode_journal,
    fingerprint_of,
    journals,
    place_of,
    read_commits,
)
from cache.local import LocalPath, StrangeFileError
from cache.manifest import files_on_disk, read_manifest
from cache.plan import (
    ARRAY_VIDEOS,
    COLUMNS,
    Plan,
    contradiction,
    parse_rows,
    read_plan,
    refuse_contradiction,
)
from cache.remote import (
    RemotePath,
    StoreFiles,
    StorePath,
    inside,
    local_path,
    store_path,
    threads_of,
)
from cache.store import Store, StoreStatus, open_store, status_of
from cache.writer import DIRECTORIES, StoreWriter, tidy, write_beside, write_journal

Kind = Literal[
    "unfinished",  # no manifest yet
    "plan",  # plan.json is not as it was written; nothing else can be checked
    "manifest",
    "missing",
    "size",
    "content",  # wrong sha256
    "journal",  # torn or changed lines
    "litter",  # left by a killed writer; harmless
    "foreign",  # not part of the store
]

PLAN_FILES = ("plan.json", COLUMNS)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed."""

    kind: Kind
    file: str  # path inside the store
    message: str

    @property
    def place(self) -> Place | None:
        """The view of a block that must be redone because of it, if any."""
        return place_of(self.file) if self.kind in ("missing", "size", "content") else None


@dataclass(frozen=True)
class Inspection:
    """What a store is, finished or not."""

    path: StorePath
    plan: Plan
    status: StoreStatus
    digest: str | None  # None while unfinished
    missing: dict[str, str]
    contents: str | None  # sha256 over those of all videos; None unless finished, whole and local
    size_bytes: int  # of all its files; at a URL, of those in the manifest
    history: tuple[dict[str, Any], ...]  # the lines of provenance.jsonl

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of the identity, with dotted names, and its digest."""
        identity = self.plan.identity
        return {"identity": identity.digest, **flatten(identity.model_dump(mode="json"))}


def inspect(path: StorePath | str) -> Inspection:
    """Describe the store at ``path``; raises RefusedError if there is no readable one."""
    root = inside(path)
    plan = read_plan(root)
    state = status_of(root, plan)
    small = len(plan.videos.ids) < ARRAY_VIDEOS  # it reads the outcome of every video
    unfinished: dict[str, Any] = {"digest": None, "missing": {}, "files": {}}
    manifest = read_manifest(root, plan) if state.finished else unfinished
    sizes = [size for size, *_ in manifest["files"].values()]
    if isinstance(root, LocalPath):
        names = [name for name, is_folder in _walk(root) if not is_folder]
        sizes = [size or 0 for size in root.sizes(names).values()]
    return Inspection(
        path=store_path(path),
        plan=plan,
        status=state,
        digest=manifest["digest"],
        missing=manifest["missing"],
        contents=_digest_of_contents(root) if state.finished and small else None,
        size_bytes=sum(sizes),
        history=_history(root / "provenance.jsonl"),
    )


def _digest_of_contents(root: StoreFiles) -> str | None:
    if isinstance(root, LocalPath):
        with suppress(DamagedError):  # what is damaged, verify says
            rows = open_store(root.root).load_rows(0)
            return sha256(canonical_json({row.id: row.sha256 for row in rows}))
    return None


def verify(path: StorePath | str, *, deep: bool = False) -> list[Finding]:
    """Everything wrong with the store at ``path``; changes nothing and takes no lock.

    Light: names, sizes, the small JSON files and the journals.  Deep: every file's sha256.
    At a URL only the files that the manifest names are checked: no journals, no foreign files.
    Raises RefusedError if there is no store, if its schema is newer, or if it is unfinished and
    at a URL.
    """
    return _Check(inside(path), deep).findings


@dataclass(frozen=True)
class Repair:
    """What a repair does: remove and rewrite files, then extract ``redo`` again."""

    path: Path
    plan: Plan
    findings: list[Finding]
    redo: list[Place]
    remove: list[str]
    extraction: bool  # whether the videos and the encoder are needed
    kept: Commits | None  # what goes into the one journal; None leaves the journals alone

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return self.extraction or any(f.kind != "foreign" for f in self.findings)

    @property
    def reopens(self) -> bool:
        """Whether the store is unfinished until it is finalised again."""
        broken = ("unfinished", "manifest", "missing", "size", "content")
        return bool(self.redo) or any(f.kind in broken for f in self.findings)

    def begin(self) -> None:
        """Remove what is damaged; the store is unfinished until it is extracted again.

        The manifest is removed first, so that a kill leaves an unfinished store.
        """
        root = LocalPath(self.path)
        with locked(root / "locks/plan", wait=True):
            if self.kept is not None:
                write_journal(root, self.plan, self.kept)
                tidy(root)
            if self.reopens:
                remove_file(root / "manifest.json")
            for name in self.remove:
                remove_file(root / name)
            write_beside(root, self.plan, {})
        if self.reopens and not self.extraction:
            StoreWriter(self.path, self.plan).finalise()


def plan_repair(path: Path | str) -> Repair:
    """What to do about every finding of a deep verification, and about quarantined videos.

    Raises DamagedError if ``plan.json`` is lost, since everything is checked against it, and
    RefusedError for a URL.
    """
    path = local_path(path)
    root = LocalPath(path)
    check = _Check(root, deep=True)
    if check.plan is None:
        raise DamagedError(f"{path / 'plan.json'}: {check.findings[0].message}")
    committed = _commits(check.plan, check.expected)
    broken = {finding.place for finding in check.findings if finding.place}
    quarantined = _quarantined(root, check.plan, committed.keys() - broken)
    redo = broken | set(quarantined)
    text = ("text.json", "text.safetensors", "truth.npy")
    unfinished = len(committed) < check.plan.blocks * check.plan.views
    removed = ("size", "content", "litter")
    return Repair(
        path=path,
        plan=check.plan,
        findings=check.findings,
        redo=sorted(redo),
        remove=[f.file for f in check.findings if f.kind in removed]
        + [rows_name(*place) for place in quarantined],
        extraction=bool(redo) or unfinished or any(f.file in text for f in check.findings),
        kept={p: f for p, f in committed.items() if p not in redo} if check.manifest else None,
    )


@dataclass
class _Check:
    path: StoreFiles
    deep: bool
    findings: list[Finding] = field(default_factory=list)
    plan: Plan | None = None  # None if it is lost
    manifest: dict[str, Any] | None = None  # None if it is lost or not yet written
    expected: Files = field(default_factory=dict)  # an empty fingerprint: any content

    def __post_init__(self) -> None:
        with storage_errors(self.path, "read"):
            plan = self._read_plan()
            if plan is None:
                return
            self._read_manifest(plan)
            if self.deep and (why := contradiction(plan)):
                self._add("plan", COLUMNS, why)
            self._check_files()
            self.plan = None if any(f.kind == "plan" for f in self.findings) else plan
            if self.plan is not None and isinstance(self.path, LocalPath):
                self._check_others(self.path, self.plan)

    def _add(self, kind: Kind, file: str, message: str) -> None:
        self.findings.append(Finding(kind, file, message))

    def _read_plan(self) -> Plan | None:
        path = self.path
        others = (path / "manifest.json").is_file()
        others |= isinstance(path, LocalPath) and (path / "features").is_folder()
        if others and not (path / "plan.json").is_file():
            self._add(
                "plan", "plan.json", "is missing; restore it, or extract with the same options"
            )
            return None
        try:
            return read_plan(self.path)
        except DamagedError as error:
            self._add("plan", "plan.json", str(error))
            return None

    def _read_manifest(self, plan: Plan) -> None:
        """Find out every file that must exist, with its size and sha256."""
        if (self.path / "manifest.json").is_file():
            try:
                self.manifest = read_manifest(self.path, plan)
                self.expected = files_on_disk(plan, self.manifest["files"])
                return
            except DamagedError as error:
                self._add("manifest", "manifest.json", str(error))
        else:
            state = status_of(self.path, plan)
            done = f"{state.done} of {state.total} blocks are committed"
            self._add("unfinished", "manifest.json", f"{done}; run tgdfer extract again to finish")
        committed = _committed_files(self.path, plan) if isinstance(self.path, LocalPath) else {}
        self.expected = committed | _planned_files(plan)

    def _check_files(self) -> None:
        sizes = self.path.sizes(self.expected) if isinstance(self.path, RemotePath) else None

        def check(name: str) -> Finding | None:
            try:
                size = _size(self.path / name) if sizes is None else sizes[name]
                return self._check_file(name, self.expected[name], size)
            except StrangeFileError as error:
                if error.name != name:
                    raise  # a folder, and nothing below it is the store's
                kind: Kind = "plan" if name in PLAN_FILES else "content"
                return Finding(kind, name, f"is {error.kind}, expected a file")

        with ThreadPoolExecutor(threads_of(self.path)) as pool:
            self.findings += filter(None, pool.map(check, self.expected))

    def _check_file(self, name: str, known: Fingerprint, size: int | None) -> Finding | None:
        path = self.path / name
        kind: Kind = "plan" if name in PLAN_FILES else "content"
        if size is None:
            return Finding("missing", name, "is missing")
        if known and size != known[0]:
            return Finding("size", name, f"has {size} bytes, expected {known[0]}")
        if known and (self.deep or name.endswith(".json")) and sha256_file(path) != known[1]:
            return Finding(kind, name, "is not as it was committed (sha256)")
        return None

    def _check_others(self, path: LocalPath, plan: Plan) -> None:
        places = set(_places(plan))
        locks = {"locks/plan", *(f"locks/{block}" for block in range(plan.blocks))}
        locks |= {f"locks/decoding.{row}" for row in range(len(plan.videos.ids))}
        walked = dict(_walk(path))
        journal_names = {journal.name for journal in journals(path)}
        present = walked.keys() - {"manifest.json"}
        for name in sorted(present - self.expected.keys()):
            if walked[name]:
                self._add("foreign", name, "does not belong to this store; repair leaves it alone")
            elif name.startswith(".tmp/") and is_scratch(name.removeprefix(".tmp/")):
                self._add("litter", name, "left by a writer that was killed")
            elif name == COLUMNS:
                self._add("litter", name, "of no use: the whole plan is in plan.json")
            elif self.manifest is None and place_of(name) in places:
                self._add("litter", name, "no journal names it; it will be rewritten")
            elif name == "provenance.jsonl" or name in journal_names:
                self._check_lines(name, plan)
            elif name not in locks:
                self._add("foreign", name, "does not belong to this store; repair leaves it alone")
            elif (path / name).size():
                self._add("litter", name, "is a lock file with content, expected none")
        if self.manifest is not None and f"journal/{FINAL}" not in present:
            self._add("journal", f"journal/{FINAL}", "is missing")

    def _check_lines(self, name: str, plan: Plan) -> None:
        data = (self.path / name).read_bytes()
        *lines, end = data.split(b"\n")
        torn = sum(not is_whole_line(line) for line in lines) + bool(end)
        final = self.manifest is not None and name == f"journal/{FINAL}"
        if torn:
            self._add("journal", name, f"{torn} lines are torn or changed")
        elif final and data != encode_journal(plan, _commits(plan, self.expected)):
            self._add("journal", name, "does not agree with the manifest")


def _places(plan: Plan) -> Iterator[Place]:
    return ((unit.block, view) for unit in plan.units() for view in unit.views)


def _commits(plan: Plan, files: Files) -> Commits:
    wanted = {place: view_files(*place) for place in _places(plan)}
    return {p: {n: files[n] for n in names} for p, names in wanted.items() if names[0] in files}


def _committed_files(path: LocalPath, plan: Plan) -> Files:
    """The files that journals name; of several records of a place, one that matches the disk."""
    commits: Commits = {}
    for place, files in read_commits(path, plan):
        if place not in commits or not all_unchanged(path, commits[place]):
            commits[place] = files
    return {n: f for place in _places(plan) for n, f in commits.get(place, {}).items()}


def _planned_files(plan: Plan) -> Files:
    """The files beside the chunks, with fingerprints if the plan determines their bytes."""
    files: Files = {name: fingerprint_of(name, data) for name, data in zarr_metadata(plan).items()}
    files |= {"plan.json": [], "text.json": [], "text.safetensors": []}
    files = files_on_disk(plan, files)
    return files | ({"truth.npy": []} if plan.videos.truth_sha256 else {})


def _quarantined(root: LocalPath, plan: Plan, places: Iterable[Place]) -> list[Place]:
    """The places whose rows name a failed video."""

    def has_failed(place: Place) -> bool:
        name = rows_name(*place)
        start = plan.block_videos * place[0]
        ids = plan.videos.ids[start : start + plan.block_videos]
        what = f"{root / name} does not describe the videos of its block"
        rows = parse_rows((root / name).read_bytes(), ids, what, "remove it, then repair again")
        return any(row.status == "failed" for row in rows)

    return [place for place in sorted(places) if has_failed(place)]


def _walk(root: LocalPath) -> Iterator[tuple[str, bool]]:
    """(path inside, whether it is a folder) of all files, and of folders that are not the store's.

    Raises StrangeFileError if a folder of the store is a link.
    """
    own = [name for name in DIRECTORIES if (root / name).is_folder()]
    return ((name, is_folder) for name, is_folder in root.walk() if name not in own)


def _size(file: StoreFiles) -> int | None:
    return file.size() if file.is_file() else None


def _history(file: StoreFiles) -> tuple[dict[str, Any], ...]:
    try:
        history = tuple(read_records(file)) if file.is_file() else ()
        for entry in history:
            if not (isinstance(entry.get("host"), str) and 0 <= float(entry["time"]) < 1 << 40):
                raise ValueError("a line has no time and host")
        return history
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{file} is damaged ({error}); remove it") from error


@dataclass(frozen=True)
class Difference:
    """How two finished stores differ."""

    fields: list[tuple[str, str, str]]  # (field, in a, in b) of the plans
    only_a: list[str]  # ids
    only_b: list[str]
    missing: dict[str, tuple[str, str]]  # id -> reasons in a and in b, where only one has features
    videos: int  # compared
    views: int  # compared
    changed: dict[str, float]  # id -> largest absolute difference of its features
    same_digest: bool

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of any feature."""
        return max(self.changed.values(), default=0.0)


def diff(path_a: StorePath | str, path_b: StorePath | str) -> Difference:
    """Compare two finished stores: what they were made from, their videos, their features."""
    a, b = open_store(path_a), open_store(path_b)
    for store in (a, b):
        refuse_contradiction(store.plan, store.path)
    rows_b = {video: row for row, video in enumerate(b.ids)}
    common = [(row, rows_b[v]) for row, v in enumerate(a.ids) if v in rows_b]
    one_sided = (a.missing.keys() ^ b.missing.keys()) & set(a.ids) & set(b.ids)
    comparable = (a.frames, a.dim) == (b.frames, b.dim)
    views = min(a.views, b.views) if comparable else 0
    return Difference(
        fields=_field_differences(a, b),
        only_a=[video for video in a.ids if video not in rows_b],
        only_b=sorted(set(b.ids) - set(a.ids), key=rows_b.__getitem__),
        missing={v: (a.missing.get(v, ""), b.missing.get(v, "")) for v in sorted(one_sided)},
        videos=len(common) if comparable else 0,
        views=views,
        changed=_feature_differences(a, b, common, views),
        same_digest=a.digest == b.digest,
    )


def _field_differences(a: Store, b: Store) -> list[tuple[str, str, str]]:
    ours, theirs = (_compared(store.plan, store.identity) for store in (a, b))
    names = sorted(ours.keys() | theirs.keys())
    rows = [(name, str(ours.get(name, "")), str(theirs.get(name, ""))) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _compared(plan: Plan, identity: Identity) -> dict[str, Any]:
    fields = flatten(identity.model_dump(mode="json"))
    fields |= {name: getattr(plan, name) for name in ("views", "frames", "dim", "block_videos")}
    videos = plan.videos
    counts = {f"number of {n}": len(getattr(videos, n)) for n in ("ids", "folds", "subsets")}
    named = {"data set": videos.name, "classes": ", ".join(videos.classes)}
    return fields | counts | named | {"source": plan.source}


def _feature_differences(
    a: Store, b: Store, rows: list[tuple[int, int]], views: int
) -> dict[str, float]:
    changed: dict[str, float] = {}
    if not rows:
        return changed
    rows_a, rows_b = (list(column) for column in zip(*rows, strict=True))
    for view in range(views):
        ours = a.load_features([view])[rows_a, 0].astype(np.float32)
        theirs = b.load_features([view])[rows_b, 0].astype(np.float32)
        gap = np.nan_to_num(np.abs(ours - theirs)).max(axis=(1, 2))
        for n in np.flatnonzero(gap):
            video = a.ids[rows_a[n]]
            changed[video] = max(changed.get(video, 0.0), float(gap[n]))
    return changed
