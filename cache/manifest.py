"""The last file of a store: sizes and sha256 of all others, and the digest that results record."""

import json
from pathlib import Path
from typing import Any

from cache.chunks import repair_hint, rows_name
from cache.errors import DamagedError
from cache.files import canonical_json, sha256, storage_errors
from cache.journal import Files, fingerprint_of
from cache.plan import Plan
from cache.remote import StorePath

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


def fixed_fingerprints(root: Path) -> Files:
    """Sizes and sha256 of the files beside the chunks, as far as they exist."""
    with storage_errors(root, "read"):
        found = [name for name in FIXED if (root / name).is_file()]
        return {name: fingerprint_of(name, (root / name).read_bytes()) for name in found}


def make_manifest(root: Path, plan: Plan, files: Files) -> dict[str, Any]:
    """The contents of ``manifest.json`` for a store with these ``files``; reads the rows."""
    missing: dict[str, str] = {}
    for unit in plan.units():
        for view in unit.views:
            for row in json.loads((root / rows_name(unit.block, view)).read_bytes()):
                if row["status"] == "failed":
                    missing.setdefault(row["id"], row["reason"])
    manifest = {
        "schema_version": plan.schema_version,
        "identity": plan.identity.digest,
        "counts": {"videos": len(plan.videos.ids), "missing": len(missing)},
        "missing": missing,
        "files": files,
    }
    return manifest | {"digest": sha256(canonical_json(manifest))}


def read_manifest(root: StorePath) -> dict[str, Any]:
    """``manifest.json`` of a store; raises DamagedError unless it is as written, byte for byte."""
    file = root / "manifest.json"
    with storage_errors(file, "read"):
        data = file.read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(data)
        content = {name: value for name, value in manifest.items() if name != "digest"}
        whole = (
            sha256(canonical_json(content)) == manifest["digest"]
            and canonical_json(manifest) + b"\n" == data
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DamagedError(f"{file} is damaged: {repair_hint(root)}")
    return manifest
