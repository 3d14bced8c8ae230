"""Stores as somebody else may have made them: links, and values with digests that fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache.files import canonical_json, encode_record, sha256
from cache.identity import flatten
from cache.journal import fingerprint_of

Change = Callable[[dict[str, Any]], object]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder by its path: bytes of files, targets of links."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def replace_by_link(store: Path, name: str, victim: Path) -> None:
    """Move a file or folder of the store into ``victim`` and leave a link in its place."""
    victim.mkdir(exist_ok=True)
    target = victim / "target"
    if not (store / name).exists():
        (store / name).touch()
    shutil.move(store / name, target)
    if target.is_dir():
        (target / "mine.txt").write_text("mine")
        (target / "mine.jsonl").write_text("mine")
    (store / name).symlink_to(target)


def forge_plan(store: Path, change: Change) -> None:
    """Change ``plan.json``, and whatever holds its digests."""
    plan = json.loads((store / "plan.json").read_bytes())
    change(plan)
    plan["identity"]["videos"] = sha256(canonical_json(plan["videos"]))
    data = canonical_json(plan) + b"\n"
    (store / "plan.json").write_bytes(data)
    identity = sha256(canonical_json(flatten(plan["identity"])))
    forge_records(store, lambda record: record.update(identity=identity))

    def renew(manifest: dict[str, Any]) -> None:
        manifest["identity"] = identity
        manifest["files"]["plan.json"] = fingerprint_of("plan.json", data)

    forge_manifest(store, renew)


def forge_file(store: Path, name: str, data: bytes) -> None:
    """Replace a file, and whatever holds its digests."""
    (store / name).write_bytes(data)
    found = fingerprint_of(name, data)
    forge_manifest(store, lambda manifest: manifest["files"].update({name: found}))
    text = {"text.safetensors": "text_sha256", "truth.npy": "truth_sha256"}.get(name)
    if text == "text_sha256":
        forge_plan(store, lambda plan: plan["identity"]["encoder"].update({text: sha256(data)}))
    elif text:
        forge_plan(store, lambda plan: plan["videos"].update({text: sha256(data)}))


def forge_manifest(store: Path, change: Change) -> None:
    """Change the manifest, and its digest."""
    manifest = json.loads((store / "manifest.json").read_bytes())
    change(manifest)
    manifest.pop("digest", None)
    manifest["digest"] = sha256(canonical_json(manifest))
    (store / "manifest.json").write_bytes(canonical_json(manifest) + b"\n")


def forge_records(store: Path, change: Change) -> None:
    """Change every record of the journal, and its checksum."""
    journal = store / "journal/final.jsonl"
    records = [json.loads(line[9:]) for line in journal.read_bytes().splitlines()]
    for record in records:
        change(record)
    journal.write_bytes(b"".join(map(encode_record, records)))
