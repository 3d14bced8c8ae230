"""Trees in which names of files and folders say the class, the part and the subject -> Survey."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.folds import folds_of_subjects
from pipeline.datasets.known import WORDS, class_of_word, full_class_name, known_datasets
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Layout, Parts, Tree, find_videos, scan
from pipeline.datasets.videos import Fold, natural_key

_PART = re.compile(r"(?<![a-z])(train(ing)?|val(id(ation)?)?|dev|test(ing)?)(set)?(?![a-z])")
NOBODY = ("nan", "none", "null", "n/a", "<na>", "unknown", "-", "?")
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
    return replace(survey, subjects=subjects, folds=folds_of_subjects(subjects, fold_of))


def survey_classes(name: str, root: Path, source: str, classes: Sequence[str], test: str) -> Survey:
    """A tree of PART/CLASS/VIDEO; ``test`` is the part that is tested on.

    A validation part that is neither is a subset of that name.
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
        if name.lower() in NOBODY:
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
    text = re.sub(r"[\s_-]+", " ", text).strip()
    text = re.sub(r"(?<=[^\W\d]) (?=\d)", "", text)
    text = re.sub(r"^(fold|set|split|fd|cv)(?=\d+$)", "", text)
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
    """The only fold of a set that is split into parts, and what is in neither half as a subset."""
    train = tuple(video_id for video_id, part in parts.items() if part == "train")
    tested = tuple(video_id for video_id, part in parts.items() if part == test)
    if not train or not tested:
        counted = ", ".join(
            f"{len(ids)} {part}" for part, ids in (("train", train), (test, tested))
        )
        raise RefusedError(f"{root}: {counted} videos; expected some of both")
    rest = frozenset(parts) - {*train, *tested}
    return (Fold("1", train, tested),), ({"validation": rest} if rest else {})


def _refuse_disagreement(
    labels: Mapping[str, int], found: Found, root: Path, classes: Sequence[str]
) -> None:
    wrong = []
    for video_id, place in found.places.items():
        label, path = labels[video_id], place.path
        folders = path.relative_to(root).parts if path.is_relative_to(root) else path.parts
        said = {full_class_name(folder) for folder in folders[-4:-1]} & {*WORDS}
        if said - {classes[label]}:
            wrong.append(f"{path} is {classes[label]} by its name")
    if wrong:
        raise RefusedError(
            f"{root}: the folders of {len(wrong)} videos say another class than their names: "
            f"{'; '.join(wrong[:3])}; sort them out"
        )
