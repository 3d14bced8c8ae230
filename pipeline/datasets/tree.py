"""A folder -> the videos in it, grouped by the copies of the pixels that it holds.

Every folder is scanned once, and no file is opened or asked for its size. Links to folders are
followed within the root if a name decides what is a video, else they would show it twice; what lies
behind a link that leaves the root is refused where it would be used.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from cache.errors import RefusedError
from pipeline.datasets.videos import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SHOWN = 10  # how many of many faults a message names
NAMED_MAX = 3  # folders in the name of a source
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".xlsx", ".parquet"})
ARCHIVE_SUFFIXES = frozenset({".zip", ".z01", ".rar", ".7z", ".tar", ".tgz", ".gz", ".001"})
# Of a part of a data set that was packed in several: clip_224x224_part_2, DFEW-part2, Clips-002.
_PART = re.compile(r"((^|[-_ ])part[-_ ]?\d+|-\d{3})$", re.IGNORECASE)
# Sixteen frames interpolated in time: different data, so never chosen unless asked for.
_INTERPOLATED = re.compile(r"(^|[_x-])16f$", re.IGNORECASE)

_IMAGE_ENDINGS = tuple(IMAGE_SUFFIXES)

Parts = tuple[str, ...]


class Entry(NamedTuple):
    """A video in a tree: ``parts`` is its path below the root, without the suffix of a file."""

    parts: Parts
    path: str
    is_folder: bool
    is_link: bool = False
    images: "Images | None" = None  # in the folder, once they are counted


@dataclass(frozen=True, slots=True)
class Images:
    """How many images a folder holds, and the names that come first and last."""

    count: int
    first: str
    last: str


@dataclass
class Tree:
    """Everything of interest below a root."""

    root: Path
    videos: list[Entry] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)  # links that leave the root
    ignored: list[str] = field(default_factory=list)  # video files of other names
    entered: set[str] = field(default_factory=set)  # folders that links lead to

    def refuse_links(self, names: Collection[str] | None = None) -> None:
        """Refuse the links that leave the root, or those of certain names."""
        for path in self.outside:
            if names is None or path.name in names:
                refuse_outside(self.root, path)


@dataclass(frozen=True)
class Place:
    """Where the pixels of a video are; a folder has ``images``, a file has none."""

    path: Path
    images: Images | None = None

    @property
    def frames(self) -> int | None:
        """How many images a folder holds; None for a file."""
        return None if self.images is None else self.images.count

    @property
    def first(self) -> Path:
        """The image of a folder whose name comes first; a file is its own."""
        return self.path / self.images.first if self.images else self.path

    @property
    def last(self) -> Path:
        """The image of a folder whose name comes last; a file is its own."""
        return self.path / self.images.last if self.images else self.path


@dataclass(frozen=True)
class Found:
    """One copy of the pixels: its name, such as "Clip/clip_224x224", and its videos by id."""

    name: str
    places: Mapping[str, Place]
    others: tuple[str, ...] = ()  # other copies in the same tree
    ids: tuple[str, ...] = ()  # of all its videos, also of folders without images
    ignored: tuple[str, ...] = ()  # video files whose names are of no video of the set
    unpack: str = ""  # what is still in archives in the same tree, and the command that unpacks it


@dataclass(frozen=True)
class Layout:
    """How a data set's videos lie in a tree.

    ``video`` says of the parts of a path whether it is a video; ``id_of`` gives its id, or None
    for one that is not of the set; ``levels`` of the path above the video belong to the id.
    ``prefer`` names folders, the best first.
    """

    video: Callable[[Parts], bool] | None  # None: whatever holds images or is a video file
    id_of: Callable[[Parts], str | None]
    levels: int = 0
    prefer: tuple[str, ...] = ()
    above: tuple[str, ...] = ()  # names of folders that hold those of ``prefer``
    unpack: str = "the videos"


def scan(
    root: Path, is_video: Callable[[Parts], bool] | None = None, holds: str = "the videos"
) -> Tree:
    """Look at every folder below ``root`` but those that are videos; see ``Layout.video``.

    Raises RefusedError if it is no folder or empty; ``holds`` says what belongs into it.
    """
    if not root.is_dir():
        raise RefusedError(f"{root}: no such folder; --root is the folder that holds {holds}")
    if not any(root.iterdir()):
        raise RefusedError(f"{root}: the folder is empty; unpack {holds} into it")
    tree = Tree(root)
    pending: list[Parts] = [() if is_video is None else _below_wrappers(root)]
    while pending:
        parts = pending.pop()
        folder, images = os.path.join(root, *parts), list[str]()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(entry.name)
                suffix = suffix.lower()
                if suffix in IMAGE_SUFFIXES:
                    images += [] if entry.name.startswith(".") else [entry.name]
                    if entry.is_symlink() and not _is_inside(root, entry.path):
                        tree.outside.append(Path(entry.path))
                elif not entry.name.startswith((".", "__MACOSX")):
                    below = _place(tree, entry, parts, stem, suffix, is_video)
                    pending += [below] if below else []
        if images and parts and is_video is None:
            found = Images(len(images), images[0], images[-1])
            tree.videos.append(Entry(parts, folder, True, images=found))
    return tree


def _below_wrappers(root: Path) -> Parts:
    """The folders that hold all there is, which may have a number for a name as a video has."""
    parts: Parts = ()
    while True:
        there = [name for name in os.listdir(os.path.join(root, *parts)) if name[0] != "."]
        inner = os.path.join(root, *parts, *there[:1])
        if len(there) != 1 or os.path.islink(inner) or not os.path.isdir(inner):
            return parts
        if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in os.listdir(inner)):
            return parts
        parts = (*parts, there[0])


def _place(
    tree: Tree,
    entry: "os.DirEntry[str]",
    parts: Parts,
    stem: str,
    suffix: str,
    is_video: Callable[[Parts], bool] | None,
) -> Parts | None:
    """Note an entry of a folder in the tree; the parts of a folder that is to be scanned too."""
    whole, is_link = (*parts, entry.name), entry.is_symlink()
    if suffix in LIST_SUFFIXES:
        tree.lists.append(Path(entry.path))  # what is no file is refused by its reader
    elif entry.is_dir():
        if is_video is not None and is_video(whole):
            tree.videos.append(Entry(whole, entry.path, True, is_link))
        elif not is_link:
            return whole
        elif not _is_inside(tree.root, entry.path):
            tree.outside.append(Path(entry.path))
        elif is_video is not None and (target := os.path.realpath(entry.path)) not in tree.entered:
            tree.entered.add(target)  # once, so that links in a circle end
            return whole
    elif suffix in VIDEO_SUFFIXES:
        bare = (*parts, stem)
        if is_video is not None and not is_video(bare):
            tree.ignored.append("/".join(whole))
        elif entry.is_file():
            tree.videos.append(Entry(bare, entry.path, False, is_link))
    elif suffix in ARCHIVE_SUFFIXES:
        tree.archives.append(Path(entry.path))
    return None


def find_videos(
    tree: Tree, layout: Layout, source: str = "auto", wanted: Collection[str] | None = None
) -> Found:
    """The copy of the pixels that ``source`` names, or the best one, and its videos by id.

    ``source`` is the end of a copy's name ("original"), or a folder, which may lie anywhere;
    "auto" takes the first of ``layout.prefer``, and folders of frames before video files. Only ids
    that are ``wanted`` count. Raises RefusedError if there is none, or if several are as good.
    """
    folder = None if source == "auto" else _folder_of(tree, layout, source)
    if folder is not None:
        tree = scan(folder, layout.video)
    # Of a listed video that is not followed to, it is said that it is missing.
    tree.refuse_links(None if wanted is None else {*layout.prefer, *layout.above})
    copies = _copies(tree, layout, wanted)
    chosen = [name for name in copies if folder is not None or _is_meant(name, source)]
    if not chosen:
        raise _no_videos(tree, layout, source, copies)
    ranks = {name: _rank(name, copies[name], layout) for name in chosen}
    best = sorted(name for name in chosen if ranks[name] == min(ranks.values()))
    names, index = _merged(best, copies, tree)
    others = tuple(name for name in copies if name not in best)
    places = _places(index, tree.root)
    name = _joined(names) if folder is None else str(folder)
    unpack = _unpack(tree.archives) if tree.archives else ""
    return Found(name, places, others, tuple(index), tuple(tree.ignored), unpack)


def refuse_outside(root: Path, path: str | Path) -> None:
    """Refuse a path that links lead out of ``root``, which may be a link itself."""
    if not _is_inside(root, path):
        raise RefusedError(
            f"{path}: a link to {os.path.realpath(path)}, which is not in {root}; copy the files "
            "there, or name the folder that they are in with --root or --source, and that of the "
            "lists with --annotation"
        )


def without_thumbnails(found: Found) -> tuple[Found, tuple[str, ...]]:
    """Without folders that would be videos only for a few images beside video files; and a note.

    They are as many as the video files, or fewer.
    """
    files = Counter(os.path.dirname(i) for i, place in found.places.items() if not place.images)
    aside = {i: 0 for i, at in found.places.items() if at.images and at.images.count <= files[i]}
    places = {i: place for i, place in found.places.items() if i not in aside}
    ids = tuple(i for i in found.ids if i not in aside)
    note = f"images beside the videos in {some(aside)} are not read"
    return replace(found, places=places, ids=ids), (note,) if aside else ()


def refuse_nested(places: Mapping[str, Place], root: Path) -> None:
    """Refuse a folder that is a video for its images and holds videos as well."""
    for video_id in places:
        for folder in accumulate(video_id.split("/")[:-1], "{}/{}".format):
            if folder in places and places[folder].images:
                raise RefusedError(
                    f"{root}: {folder} holds images, and there is a video {video_id} in it; "
                    "move one of them away, to say which is the video"
                )


def is_interpolated(name: str) -> bool:
    """Whether a copy holds 16 frames a video that were interpolated in time: other data."""
    return any(_INTERPOLATED.search(part) for part in name.split("/"))


def some(names: Collection[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


def _is_inside(root: Path, path: str | Path) -> bool:
    real, top = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, top]) == top


def _folder_of(tree: Tree, layout: Layout, source: str) -> Path | None:
    """The folder that a source names, unless it is the name of a copy in the tree."""
    if any(_ends_with(name, source) for name in _copies(tree, layout, None)):
        return None
    for folder in (tree.root / source, Path(source)):
        if folder.is_dir():
            return folder
    return None


def _copies(
    tree: Tree, layout: Layout, wanted: Collection[str] | None
) -> dict[str, dict[str, Entry]]:
    """Copies of the pixels by name, each with its videos by id; packed parts are put together."""
    copies: dict[str, dict[str, Entry]] = {}
    for entry in tree.videos:
        above = max(0, len(entry.parts) - 1 - layout.levels)
        video_id = layout.id_of(entry.parts)
        if video_id is None or (wanted is not None and video_id not in wanted):
            continue
        copy = copies.setdefault(copy_name(entry.parts[:above]), {})
        same = copy.setdefault(video_id, entry)
        if same is not entry:
            raise RefusedError(
                f"{os.path.dirname(same.path)}: {os.path.basename(same.path)} and "
                f"{_shown(entry, same)} share an id, {video_id}; remove one"
            )
    return copies


def _shown(entry: Entry, beside: Entry) -> str:
    here = os.path.dirname(entry.path) == os.path.dirname(beside.path)
    return os.path.basename(entry.path) if here else entry.path


@cache
def copy_name(parts: Parts) -> str:
    """What parts and doubled folders are called together.

    >>> copy_name(("Clip", "clip_224x224_part_2")), copy_name(("jpg_256", "jpg_256")), copy_name(())
    ('Clip/clip_224x224', 'jpg_256', '.')
    """
    names: list[str] = []
    for part in parts:
        name = _PART.sub("", part)
        if name and names[-1:] != [name]:
            names.append(name)
    return "/".join(names) or "."


def _is_meant(name: str, source: str) -> bool:
    return not is_interpolated(name) if source == "auto" else _ends_with(name, source)


def _ends_with(name: str, source: str) -> bool:
    return f"/{name}".endswith(f"/{source.strip('/')}")


def _rank(name: str, copy: Mapping[str, Entry], layout: Layout) -> tuple[int, bool]:
    """Small is good: the place in ``layout.prefer``, and folders of frames before video files."""
    folders = name.split("/")
    known = [n for n, wanted in enumerate(layout.prefer) if wanted in folders]
    has_frames = any(entry.is_folder for entry in copy.values())
    return min(known, default=len(layout.prefer)), not has_frames


def _merged(
    names: Sequence[str], copies: Mapping[str, dict[str, Entry]], tree: Tree
) -> tuple[list[str], dict[str, Entry]]:
    """Copies that are as good as one another, together, if no two hold a video of one id.

    A copy that is only a link to another is left out.
    """
    index: dict[str, Entry] = {}
    used: list[str] = []
    for name in names:
        both = index.keys() & copies[name].keys()
        if any(not os.path.samefile(index[i].path, copies[name][i].path) for i in both):
            raise RefusedError(
                f"{tree.root}: {' and '.join([*used, name])} both hold {some(sorted(both))}; "
                "choose one with --source"
            )
        used += [name] if copies[name].keys() - both else []
        index = copies[name] | index
    return used, index


def _joined(names: Sequence[str]) -> str:
    if len(names) > NAMED_MAX:
        return f"{names[0]} and {len(names) - 1} more folders"
    return " and ".join(names)


def _places(index: Mapping[str, Entry], root: Path) -> dict[str, Place]:
    """The places of videos; a folder without images is none."""
    places = {}
    for video_id, entry in index.items():
        if entry.is_link:
            refuse_outside(root, entry.path)
        place = place_at(entry.path, entry.is_folder, root, entry.images)
        if place is not None:
            places[video_id] = place
    return places


def place_at(path: str, is_folder: bool, root: Path, images: Images | None = None) -> Place | None:
    """The place of a video; None for a folder without images."""
    if not is_folder:
        return Place(Path(path))
    images = images or count_images(path, root)
    return Place(Path(path), images) if images else None


def count_images(folder: str, root: Path) -> Images | None:
    """The images of a folder, if it has any; refuses those behind a link that leaves the root."""
    with os.scandir(folder) as entries:
        found = list(entries)  # a million for some sets, so each is asked as little as possible
    names = [entry.name for entry in found]
    names = [n for n in names if n.lower().endswith(_IMAGE_ENDINGS) and n[0] != "."]
    names.sort()
    links = {entry.name for entry in filter(os.DirEntry.is_symlink, found)}
    for name in links.intersection(names):
        refuse_outside(root, os.path.join(folder, name))
    return Images(len(names), names[0], names[-1]) if names else None


def _no_videos(
    tree: Tree, layout: Layout, source: str, copies: Mapping[str, Mapping[str, Entry]]
) -> RefusedError:
    tree.refuse_links()
    start = f"{tree.root}: no frames or videos for source {source!r}"
    if tree.archives:
        return RefusedError(f"{start}; {_unpack(tree.archives)}")
    interpolated = [name for name in copies if is_interpolated(name)]
    if source == "auto" and interpolated:
        return RefusedError(
            f"{start}; {', '.join(interpolated)} holds interpolated frames, which are other data: "
            f"unpack {layout.unpack}, or take them with --source {interpolated[0]}"
        )
    there = f"there are {', '.join(copies)}; " if copies else ""
    return RefusedError(f"{start}; {there}unpack {layout.unpack}, or name the folder with --source")


def _unpack(archives: Sequence[Path]) -> str:
    """The command that unpacks archives; one cut into volumes has to be joined first."""
    first = archives[0]
    volumes = [path for path in archives if path.suffix.lower() in (".z01", ".001")]
    if volumes:
        whole = volumes[0].with_suffix(".zip" if volumes[0].suffix.lower() == ".z01" else "")
        joined = whole.with_name("whole.zip")
        how = f"zip -s 0 '{whole}' --out '{joined}' && unzip '{joined}' -d '{whole.parent}'"
        if volumes[0].suffix == ".001":
            how = f"7z x '{volumes[0]}' -o'{first.parent}'"
    elif first.suffix.lower() == ".zip":
        how = f"unzip '{first}' -d '{first.parent}'"
    elif first.suffix.lower() in (".rar", ".7z"):
        how = f"7z x '{first}' -o'{first.parent}'"
    else:
        how = f"tar -xf '{first}' -C '{first.parent}'"
    return f"{some([path.name for path in archives])} is not unpacked: {how}"
