"""Videos that a fold trains on and is tested on, under two ids; the sha256 of their bytes tells."""

from collections.abc import Collection, Iterator

from cache.errors import RefusedError
from cache.store import LIVE, Store

SHOWN = 3


def find_leaks(store: Store) -> dict[str, list[tuple[str, str]]]:
    """Fold -> pairs (training id, test id) of the same bytes; folds without any are left out.

    Features made elsewhere have no sources, and those of a live run are not read before training.
    """
    rows = [] if store.digest.startswith(LIVE) else store.load_rows(0)
    first: dict[str, int] = {}
    group_of = {n: first.setdefault(row.sha256, n) for n, row in enumerate(rows) if row.sha256}
    found = {}
    for name, train, test in store.folds:
        trained = {group_of[n]: n for n in train.tolist() if n in group_of}
        pairs = [(trained[group_of[n]], n) for n in test.tolist() if group_of.get(n) in trained]
        if pairs:
            found[name] = [(store.ids[a], store.ids[b]) for a, b in pairs]
    return found


def describe_leaks(leaks: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    """A sentence for each fold."""
    for fold, pairs in leaks.items():
        shown = ", ".join(f"{test} is {train}" for train, test in pairs[:SHOWN])
        more = ", …" if len(pairs) > SHOWN else ""
        yield (
            f"fold {fold} is tested on videos that it trains on under other ids "
            f"({len(pairs)} in all: {shown}{more})"
        )


def refuse_leaks(store: Store, folds: Collection[str]) -> None:
    """Raise RefusedError if one of the ``folds`` is tested on the bytes of a training video."""
    leaks = {fold: pairs for fold, pairs in find_leaks(store).items() if fold in folds}
    for sentence in describe_leaks(leaks):
        raise RefusedError(
            f"{store.path}: {sentence}; remove one id of each pair from the lists and extract "
            "again, or use --allow-duplicates"
        )
