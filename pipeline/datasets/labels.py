"""Labels as lists write them -> class indices: where they count from, and in which order.

Public copies of one list count from 0 or from 1, and number the classes in several orders; nothing
is shifted or swapped unless the list itself proves how it counts.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

from cache.columns import VOTES_MAX
from cache.errors import RefusedError
from pipeline.datasets.known import Known, class_of_word
from pipeline.datasets.rows import Key, Row, Votes

# How much better, in log-likelihood, another order must explain the counts to rule one out.
BEYOND_DOUBT = 10.0
# Of the published videos a list lacks; that it lacks none does not mean that none was relabelled.
LACKING_MIN = 1e-3


def read_labels(
    parts: Mapping[Key, Sequence[Row]], rows: Mapping[str, Row], lists: Path, known: Known
) -> dict[str, int]:
    """Labels that are words or numbers, from 0; ``rows`` are the first ones of every video.

    Numbers are in the order of classes that their counts prove. Raises RefusedError, with both
    tables, if they are in an order that no published one explains.
    """
    every = list(chain.from_iterable(parts.values()))
    words = [row for row in every if not row.label.removeprefix("-").isdecimal()]
    if len(words) == len(every):
        return read_words(rows, known.classes)
    if words:
        raise RefusedError(
            f"{words[0].where}: label {words[0].label!r} is a word, and others are numbers; write "
            "either in all lists"
        )
    base = label_base(every, lists, len(known.classes))
    numbers = {video_id: int(row.label) - base for video_id, row in rows.items()}
    order = find_order(Counter(numbers.values()), lists, known)
    return {video_id: order[number] for video_id, number in numbers.items()}


def read_words(rows: Mapping[str, Row], classes: Sequence[str]) -> dict[str, int]:
    """Labels that are words, from 0; refuses a word that names none of the classes."""
    labels = {}
    for video_id, row in rows.items():
        name = class_of_word(row.label)
        if name not in classes:
            words = re.split(r"[_&+-]", row.label)
            several = len(words) > 1 and all(map(class_of_word, words))
            raise RefusedError(
                f"{row.where}: label {row.label!r}; expected one of {', '.join(classes)}"
                + ("; lists of compound expressions are not read" if several else "")
            )
        labels[video_id] = classes.index(name)
    return labels


def label_base(rows: Sequence[Row], lists: Path, classes: int) -> int:
    """1 for lists that count from 1, 0 for those from 0; both ends must occur to tell."""
    low = min(rows, key=lambda row: int(row.label))
    high = max(rows, key=lambda row: int(row.label))
    first, end = int(low.label), int(high.label)
    last = classes - 1
    if (first, end) == (0, last):
        return 0
    if (first, end) == (1, last + 1):
        return 1
    raise RefusedError(
        f"{lists}: labels run from {first} ({low.where}) to {end} ({high.where}); "
        f"expected 1 to {last + 1} (official) or 0 to {last}, to be certain which class is which"
    )


def class_base(rows: Sequence[Row], lists: Path, classes: Sequence[str]) -> int:
    """As ``label_base``; ``classes`` that are numbers themselves must be those of their places."""
    base = label_base(rows, lists, len(classes))
    for label, name in enumerate(classes, base):
        if name.isdecimal() and int(name) != label:
            raise RefusedError(
                f"{lists}: the labels count from {base}, so the class of label {label} is the "
                f"one that the texts call [{name}]: call them by the names of the classes, in the "
                "order of the labels"
            )
    return base


def find_order(counts: Mapping[int, int], lists: Path, known: Known) -> tuple[int, ...]:
    """For each number from 0, the index of its class in ``known.classes``.

    ``counts`` are videos per number, of all or some of those of the data set. An order is refused
    if the published shares in another one explain the counts beyond doubt, as of a sample without
    replacement (multinomial likelihood with the finite population correction, and quasi-likelihood
    where no order explains them: a list in which somebody chose how many of each there are proves
    nothing). Short lists cannot tell; of a data set with several known orders they are refused.
    """
    orders = (known.classes, *known.orders)
    found = [counts.get(k, 0) for k in range(len(known.classes))]
    scores = {order: 0.0 for order in orders}
    if known.counts:
        published = {order: [known.counts[name] for name in order] for order in orders}
        doubts = _doubts(found, [*published.values()])
        scores = dict(zip(orders, doubts, strict=True))
    best, *others = sorted(orders, key=lambda order: scores[order])
    if scores[best] > BEYOND_DOUBT:
        raise RefusedError(_side_by_side(found, lists, known))
    if any(scores[other] - scores[best] <= BEYOND_DOUBT for other in others):
        raise RefusedError(
            f"{lists}: the labels are numbers, and public lists of {known.title} number its "
            f"classes in {len(orders)} orders; {sum(found)} videos are too few to tell which one "
            "this is: use lists with the names of the classes"
        )
    return tuple(known.classes.index(name) for name in best)


def order_note(rows: Mapping[str, Row], labels: Mapping[str, int], known: Known) -> tuple[str, ...]:
    """What numbers were read as, if their counts allow other orders of the classes as well."""
    if not known.counts or not any(row.label.isdecimal() for row in rows.values()):
        return ()
    counts = Counter(labels.values())
    published = [known.counts[name] for name in known.classes]
    orders = [published]
    for a, b in combinations(range(len(published)), 2):  # one of these is the second best
        orders.append([*published])
        orders[-1][a], orders[-1][b] = published[b], published[a]
    own, *others = _doubts([counts[k] for k in range(len(published))], orders)
    if min(others) - own > BEYOND_DOUBT:
        return ()
    meant = sorted({(int(row.label), known.classes[labels[i]]) for i, row in rows.items()})
    return (
        f"{len(labels)} videos are too few, or others than published, to prove what a number "
        f"means; read as {', '.join(f'{n} {name}' for n, name in meant)}; to be sure, write the "
        "names in the lists",
    )


def read_against_paths(
    rows: Mapping[str, Row], classes: Sequence[str], word_of: Callable[[Row], str]
) -> dict[str, int]:
    """Labels of videos whose paths say the class; words must agree, numbers must stand for one.

    ``word_of`` gives the word in the path of a row. Raises RefusedError with three examples if the
    labels disagree with the paths.
    """
    paths = {video_id: class_of_word(word_of(row)) for video_id, row in rows.items()}
    pairs = Counter((row.label, paths[video_id]) for video_id, row in rows.items())
    meant: dict[str, str | None] = {}
    for (label, name), _ in pairs.most_common():
        meant.setdefault(label, class_of_word(label) or name)
    wrong = [row for video_id, row in rows.items() if paths[video_id] != meant[row.label]]
    numbered = [name for label, name in meant.items() if label.isdecimal()]
    repeated = len({*numbered}) < len(numbered)
    if wrong or repeated or not {*meant.values()} <= {*classes}:
        shown = "; ".join(f"{row.where}: {row.path} has label {row.label}" for row in wrong[:3])
        said = ", ".join(f"{label} for {name}" for label, name in sorted(meant.items()))
        raise RefusedError(
            f"{len(wrong)} labels disagree with the paths of their videos: {shown or said}; the "
            f"labels mean {said}: repair the list"
        )
    return {video_id: classes.index(name) for video_id, name in paths.items() if name is not None}


def votes_of(rows: Mapping[str, Row], labels: Mapping[str, int]) -> dict[str, Votes]:
    """The votes of the rows that have some; refuses those for no class, or in another order.

    They are in another order if ``votes_for_others`` finds some.
    """
    voted = {video_id: row.votes for video_id, row in rows.items() if row.votes is not None}
    for video_id, votes in voted.items():
        if not 0 < max(votes) <= VOTES_MAX:
            raise RefusedError(
                f"{rows[video_id].where}: the largest vote of video {video_id} is "
                f"{max(votes):g}, expected more than 0 and at most {VOTES_MAX:g}"
            )
    wrong = votes_for_others(voted, labels)
    if wrong:
        raise RefusedError(
            f"{rows[wrong[0]].where}: the largest vote of {len(wrong)} of {len(voted)} videos is "
            "not for their label, so the votes are in another order than the classes"
        )
    return voted


def votes_for_others(voted: Mapping[str, Votes], labels: Mapping[str, int]) -> list[str]:
    """The videos whose largest vote is not for their label, if the votes are in another order.

    They are if these are most videos, or most of each of some classes whose votes went round: of
    three or more videos labelled fear most for surprise, and of those labelled surprise for fear.
    """
    pairs = Counter[tuple[int, int]]()
    wrong = []
    for video_id, votes in voted.items():
        label, largest = labels[video_id], votes.index(max(votes))
        if votes[label] < votes[largest]:
            wrong.append(video_id)
            pairs[label, largest] += 1
    sizes = Counter(labels[video_id] for video_id in voted)
    moved = {a: b for (a, b), n in pairs.items() if n > 2 and 2 * n > sizes[a]}
    return wrong if 2 * len(wrong) > len(voted) or _goes_round(moved) else []


def _goes_round(moved: Mapping[int, int]) -> bool:
    """Whether following ``moved`` leads from somewhere back to it."""
    for start in moved:
        place: int | None = start
        for _ in moved:
            place = None if place is None else moved.get(place)
            if place == start:
                return True
    return False


def _doubts(found: Sequence[int], published: Sequence[Sequence[int]]) -> list[float]:
    """By how much log-likelihood the best of all orders beats each of ``published``."""
    total, of_all = sum(found), sum(published[0])
    lacking = max(1 - total / of_all, LACKING_MIN)

    def unlikely(of_found: Sequence[int], shares: Sequence[int]) -> float:
        both = zip(of_found, shares, strict=True)
        return sum(n * math.log(n * of_all / (total * p)) for n, p in both if n) / lacking

    # Whatever the order, the most frequent number is best explained by the most frequent class.
    least = unlikely(sorted(found), sorted(published[0]))
    dispersion = max(1.0, 2 * least / (len(found) - 1))
    return [(unlikely(found, shares) - least) / dispersion for shares in published]


def _side_by_side(found: Sequence[int], lists: Path, known: Known) -> str:
    rows = [("published", "here", "number", "class")]
    for k, name in enumerate(known.classes):
        rows.append((str(known.counts[name]), str(found[k]), str(k), name))
    table = "\n".join(f"{c:>6}  {d:<14}  {a:>12}  {b:>8}" for a, b, c, d in rows)
    return (
        f"{lists}: the labels number the classes in another order than {known.title}: there are "
        "too many or too few videos of each (or those of a class were removed)\n"
        f"{table}\nuse the official lists, or write the names of the classes in place of the "
        "numbers"
    )
