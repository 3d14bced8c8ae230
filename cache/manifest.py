"""The last file of a store: sizes and sha256 of all others, and the digest that results record."""

from collections.abc import Callable, Mapping
from typing import Any

from cache.chunks import repair_hint, rows_name, view_files
from cache.errors import DamagedError
from cache.files import canonical_json, sha256, storage_errors
from cache.journal import Files, fingerprint_of, is_fingerprint
from cache.local import LocalPath
from cache.outside import parse_json
from cache.plan import COLUMNS, Plan, encode_plan_file, parse_rows
from cache.remote import StoreFiles

# The files beside the chunks; all but the last are always there.
FIXED = (
    "plan.json",
    "zarr.json",
    "features/zarr.json",
    "frame_index/zarr.json",
    "text.json",
    "text.safetensors",
    "truth.npy",
)


def fixed_fingerprints(root: LocalPath, plan: Plan) -> Files:
    """Sizes and sha256 of the files beside the chunks, as far as they exist."""
    with storage_errors(root, "read"):
        found = [name for name in FIXED if (root / name).is_file()]
        files = {name: fingerprint_of(name, (root / name).read_bytes()) for name in found}
    return files | ({"plan.json": [*plan.arrays.whole]} if plan.arrays else {})


def files_on_disk(plan: Plan, files: Files) -> Files:
    """The files of a manifest as they are in the store, where its plan may be kept in two."""
    if plan.arrays is None:
        return files
    kept = fingerprint_of("plan.json", encode_plan_file(plan))
    return files | {"plan.json": kept, COLUMNS: [*plan.arrays.columns]}


def refuse_undeclared(plan: Plan, files: Files, where: object) -> None:
    """Raise DamagedError if a file of the plan has another sha256 than the plan says."""
    for name, digest in _declared(plan).items():
        found = files[name][1] if name in files else None
        if found != digest:
            raise DamagedError(
                f"{where}: {name} has sha256 {found}, the plan says {digest}; run tgdfer extract "
                "again to rewrite it"
            )


def file_names(plan: Plan) -> set[str]:
    """The files that a manifest names: paths inside the store."""
    places = ((block, view) for block in range(plan.blocks) for view in range(plan.views))
    fixed = FIXED if plan.videos.truth_sha256 else FIXED[:-1]
    return {*fixed, *(name for place in places for name in view_files(*place))}


def make_manifest(plan: Plan, files: Files, read: Callable[[str], bytes]) -> dict[str, Any]:
    """The contents of ``manifest.json`` for a store with these ``files``.

    ``read`` gives the bytes of the rows; raises DamagedError if they are not the plan's.
    """
    missing: dict[str, str] = {}
    for unit in plan.units():
        ids = plan.videos.ids[unit.start : unit.stop]
        for name in (rows_name(unit.block, view) for view in unit.views):
            what = f"{name} does not describe the videos of its block"
            for row in parse_rows(read(name), ids, what, "remove it and extract again"):
                if row.status == "failed":
                    missing.setdefault(row.id, row.reason)
    manifest = {
        "schema_version": plan.schema_version,
        "identity": plan.identity.digest,
        "counts": {"videos": len(plan.videos.ids), "missing": len(missing)},
        "missing": missing,
        "files": dict(sorted(files.items())),
    }
    return manifest | {"digest": sha256(canonical_json(manifest))}


def read_manifest(root: StoreFiles, plan: Plan) -> dict[str, Any]:
    """``manifest.json`` of a store.

    Raises DamagedError unless it is as written, byte for byte, and names exactly the files of the
    plan.
    """
    file = root / "manifest.json"
    with storage_errors(file, "read"):
        data = file.read_bytes()
    try:
        manifest = parse_json(data, file)
        same = sha256(_without_digest(data, manifest)) == manifest["digest"]
        whole = same and _fits(manifest, plan)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DamagedError(f"{file} is damaged: {repair_hint(root)}")
    return manifest


def _without_digest(data: bytes, manifest: Mapping[str, Any]) -> bytes:
    """The canonical JSON of all else in a manifest, cut from its bytes."""
    start = canonical_json({"counts": manifest["counts"]})[:-1]
    digest = b',"digest":' + canonical_json(manifest["digest"])
    if not (data.startswith(start + digest) and data.endswith(b"}\n")):
        raise ValueError("the manifest is not canonical")
    return start + data[len(start) + len(digest) : -1]


def _fits(manifest: Mapping[str, Any], plan: Plan) -> bool:
    """Whether a manifest, whoever wrote it, describes a store of this plan."""
    files, missing = manifest["files"], manifest["missing"]
    return (
        manifest["identity"] == plan.identity.digest
        and manifest["counts"] == {"videos": len(plan.videos.ids), "missing": len(missing)}
        and not (missing and {*missing}.difference(plan.videos.ids))
        and all(isinstance(reason, str) for reason in missing.values())
        and files.keys() == file_names(plan)
        and all(is_fingerprint(name, found, plan) for name, found in files.items())
        and all(files[name][1] == digest for name, digest in _declared(plan).items() if digest)
    )


def _declared(plan: Plan) -> dict[str, str | None]:
    """The files whose sha256 the plan holds."""
    digests = {
        "text.safetensors": plan.identity.encoder.text_sha256,
        "truth.npy": plan.videos.truth_sha256,
    }
    return digests | ({"plan.json": plan.arrays.whole[1]} if plan.arrays else {})
