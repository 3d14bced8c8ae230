"""A store of an older schema -> the newest, in place; no feature is read or written."""

from dataclasses import dataclass

from cache.errors import RefusedError
from cache.files import locked, make_folders, storage_errors, sweep
from cache.local import LocalPath
from cache.plan import COLUMNS, encode_plan, encode_plan_file, parse_array_plan, read_plan
from cache.remote import StorePath, local_path
from cache.store import open_store
from cache.writer import DIRECTORIES, write_arrays


@dataclass(frozen=True)
class Migration:
    """What a migration did; the store's digest is as before."""

    digest: str
    videos: int
    bytes_before: int  # of the plan in one file
    bytes_after: int  # of the two files


def migrate(path: StorePath | str) -> Migration | None:
    """Keep the plan of a finished store in two files; None if it is kept so already.

    Killed at any moment, it leaves the old store or the new one.  Raises RefusedError for a URL, a
    file, an unfinished store, and a plan that would not be the same afterwards.
    """
    path = local_path(path)
    if path.is_file():
        raise RefusedError(
            f"{path} is a file, expected the folder of a store; an exported store is the same for "
            "all schemas: import it with tgdfer store import"
        )
    if open_store(path).plan.arrays:
        return None
    make_folders(path, DIRECTORIES)
    root = LocalPath(path)
    with locked(root / "locks/plan", wait=True), storage_errors(root):
        before = _put_in_two(root)
        sweep(root / ".tmp")
    store, after = open_store(path), sum((root / name).size() for name in ("plan.json", COLUMNS))
    return Migration(store.digest, len(store.ids), before, after)


def _put_in_two(root: LocalPath) -> int:
    """Replace ``plan.json``; returns its size before."""
    before = (root / "plan.json").read_bytes()
    plan, columns = read_plan(root).in_arrays()
    what, remedy = f"{root}: its plan would not be the same afterwards", "extract or import it anew"
    again = parse_array_plan(encode_plan_file(plan), columns, what, remedy)
    if encode_plan(again) != before:
        raise RefusedError(f"{what}: {remedy}")
    write_arrays(root, plan, columns)
    return len(before)
