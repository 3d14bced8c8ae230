"""Trees in which names of files and folders say the class, the part and the subject -> Survey."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.folds import folds_of_subjects
from pipeline.datasets.known import class_of_word, known_datasets
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Layout, Parts, Tree, find_videos, scan
from pipeline.datasets.videos import Fold, natural_key

PART = r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?)"  # words for a part of a split
FOLD = r"(fold|set|split|fd|cv)"  # words before the number of a fold
_PART = re.compile(rf"(?<![a-z]){PART}(set)?(?![a-z])")
_NUMBER_OF_PERSON = re.compile(r".*(?:actor|subject)[\s_-]*(\d+)|(10\d\d)")  # CREMA-D: 1001
# As programs write them; Nan is a name.
NOBODY = ("nan", "NaN", "NA", "N/A", "n/a", "<NA>", "None", "none", "NULL", "null", "-", "?")
_PARTS = {"tra": "train", "val": "validation", "dev": "validation", "tes": "test"}


def survey_named(
    name: str,
    tree: Tree,
    source: str,
    layout: Layout,
    classes: Sequence[str],
    word_of: Callable[[str], str],
) -> Survey:
    """The videos of a tree whose ids say their class; ``word_of`` gets an id and gives the word.

    Raises RefusedError for a word that names no class, and if a folder above a video says another
    class than its id.
    """
    found = find_videos(tree, layout, source)
    ids = sorted(found.ids, key=natural_key)
    named = {video_id: class_of_word(word_of(video_id)) for video_id in ids}
    unknown = [video_id for video_id, word in named.items() if word not in classes]
    if unknown:
        raise RefusedError(
            f"{tree.root}: {word_of(unknown[0])!r} of {unknown[0]} names none of the classes "
            f"{', '.join(classes)}; move it away if it is not of the set"
        )
    labels = {video_id: classes.index(str(name)) for video_id, name in named.items()}
    _refuse_disagreement(labels, found, tree.root, classes)
    return Survey(name, tree.root, tuple(classes), labels, (), found)


def survey_actors(
    name: str,
    tree: Tree,
    source: str,
    layout: Layout,
    word_of: Callable[[str], str],
    subject_of: Callable[[str], str],
    fold_of: Callable[[int], int],
) -> Survey:
    """As ``survey_named``, where ids say the subject as well; folds as ``folds_of_subjects``."""
    classes = known_datasets()[name].classes
    survey = survey_named(name, tree, source, layout, classes, word_of)
    subjects = {video_id: subject_of(video_id) for video_id in survey.labels}
    _refuse_other_people(subjects, survey.found, tree.root)
    return replace(survey, subjects=subjects, folds=folds_of_subjects(subjects, fold_of))


def survey_classes(name: str, root: Path, source: str, classes: Sequence[str], test: str) -> Survey:
    """A tree of PART/CLASS/VIDEO; ``test`` is the part that is tested on.

    A part that is neither is a subset of that name.
    """

    def id_of(parts: Parts) -> str | None:
        part = part_of(parts[-3]) if len(parts) > 2 else None
        return f"{part}/{parts[-2]}/{parts[-1]}" if part else None

    layout = Layout(
        lambda parts: id_of(parts) is not None,
        id_of,
        levels=2,
        unpack=f"folders such as train/{classes[0].capitalize()}",
    )
    tree = scan(root, layout.video, layout.unpack)
    survey = survey_named(name, tree, source, layout, classes, lambda i: i.split("/")[1])
    refuse_spellings({video_id: video_id for video_id in survey.labels}, root, "video")
    parts = {video_id: video_id.split("/")[0] for video_id in survey.labels}
    folds, subsets = split_fold(parts, test, root)
    return replace(survey, folds=folds, subsets=subsets)


def refuse_spellings(named: Mapping[str, str], where: Path, what: str = "class") -> None:
    """Refuse names, by id, that differ only in how they are written.

    Nothing says that ``Bored`` and ``bored`` are one class, or that they are two; so with spaces
    and underscores, the word and the zeros before a number (``fold 1``, ``set01``), letters that
    are not seen, and encodings of one. ``what`` they are is said in the message.
    """
    first: dict[str, str] = {}
    counts = Counter(named.values())
    for name in counts:
        other = first.setdefault(spelling(name), name)
        if other != name:
            ids = [next(i for i, own in named.items() if own == n) for n in (other, name)]
            both = (
                f"{n!a} ({counts[n]} videos, such as {i})"
                for n, i in zip((other, name), ids, strict=True)
            )
            raise RefusedError(
                f"{where}: {' and '.join(both)} are one {what} spelled in two ways: spell it "
                "in one, or rename one if they are two"
            )


def refuse_nobody(subjects: Mapping[str, str], where: Path) -> None:
    """Refuse subjects in two spellings, and words that mean that nobody is known."""
    for video_id, name in subjects.items():
        if name in NOBODY or name.lower() == "unknown":
            raise RefusedError(
                f"{where}: the subject of {video_id} is {name!r}, which would make one person of "
                "all who are not known: leave the cell empty, or leave the video out"
            )
    refuse_spellings(subjects, where, "subject")


def spelling(name: str) -> str:
    """What names have in common that are one in several spellings.

    >>> spelling("Fold_01") == spelling("set1") == spelling("1"), spelling("1-1") == spelling("11")
    (True, False)
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold())
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    text = re.sub(r"[\s_-]+", " ", text)
    text = re.sub(r"(?<=[^\W\d]) (?=\d)", "", text)
    text = re.sub(rf"^{FOLD}(?=\d+$)", "", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def part_of(word: str) -> str | None:
    """``train``, ``validation`` or ``test``, as a folder or a column spells it.

    >>> part_of("Train_AFEW"), part_of("dev"), part_of("happy")
    ('train', 'validation', None)
    """
    found = _PART.search(word.lower())
    return _PARTS[found[1][:3]] if found else None


def split_fold(
    parts: Mapping[str, str], test: str, root: Path
) -> tuple[tuple[Fold, ...], dict[str, frozenset[str]]]:
    """The only fold of a set that is split into parts, and any third part as a subset."""
    train = tuple(video_id for video_id, part in parts.items() if part == "train")
    tested = tuple(video_id for video_id, part in parts.items() if part == test)
    if not train or not tested:
        counted = ", ".join(
            f"{len(ids)} {part}" for part, ids in (("train", train), (test, tested))
        )
        raise RefusedError(f"{root}: {counted} videos; expected some of both")
    others = {*parts.values()} - {"train", test}
    subsets = {name: frozenset(i for i, part in parts.items() if part == name) for name in others}
    return (Fold("1", train, tested),), subsets


def _refuse_disagreement(
    labels: Mapping[str, int], found: Found, root: Path, classes: Sequence[str]
) -> None:
    said = {
        video_id: {class_of_word(folder) for folder in folders if len(folder) > 2} - {None}
        for video_id, folders in _folders(found, root).items()
    }
    named = {video_id: classes[label] for video_id, label in labels.items()}
    _refuse_other(said, named, "class", found, root)


def _refuse_other_people(subjects: Mapping[str, str], found: Found, root: Path) -> None:
    """Refuse folders such as ``Actor_05`` and ``1005`` that say another subject than the name."""
    numbers = {video_id: re.sub(r"\D", "", name) for video_id, name in subjects.items()}
    said: dict[str, set[str | None]] = {video_id: set() for video_id in subjects}
    for video_id, folders in _folders(found, root).items():
        digits = len(numbers[video_id])
        for folder in folders:
            found_in = _NUMBER_OF_PERSON.fullmatch(folder.lower())
            number = found_in and (found_in[1] or found_in[2])
            if number and (len(number) == 4) == (digits == 4):
                said[video_id].add(number.lstrip("0").zfill(digits))
    _refuse_other(said, numbers, "subject", found, root)


def _folders(found: Found, root: Path) -> dict[str, tuple[str, ...]]:
    """The last three folders that each video is in, below the root."""
    paths = {video_id: place.path for video_id, place in found.places.items()}
    return {
        video_id: (path.relative_to(root) if path.is_relative_to(root) else path).parts[-4:-1]
        for video_id, path in paths.items()
    }


def _refuse_other(
    said: Mapping[str, Collection[str | None]],
    named: Mapping[str, str],
    what: str,
    found: Found,
    root: Path,
) -> None:
    wrong = [video_id for video_id in said if {*said[video_id]} - {named[video_id]}]
    if wrong:
        shown = (f"{found.places[i].path} is {named[i]} by its name" for i in wrong[:3])
        raise RefusedError(
            f"{root}: the folders of {len(wrong)} videos say another {what} than their names: "
            f"{'; '.join(shown)}; sort them out"
        )
