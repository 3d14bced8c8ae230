"""The source that computes a run's numbers -> a digest that formatting and prose do not change.

It covers every file of this package that training a stack imports, directly or not: their syntax
trees, without comments, docstrings, descriptions of settings and error messages.
"""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cache.files import canonical_json, sha256

PIPELINE = Path(__file__).resolve().parents[1]
ENTRIES = ("train/stack.py", "evaluate/influence.py")
LIVE_ENTRIES = (*ENTRIES, "extract/live.py")  # where the features are computed in training
IGNORED = {"profile.py"}  # only watches
TEXTS = "datasets/texts.toml"  # what the prompts say


@cache
def code_files(live: bool = False) -> dict[str, str]:
    """Every file that affects a run's numbers, by its path in the package, and its digest.

    For a ``live`` run, which computes its features in training, that includes stage one.
    """
    files = {TEXTS: sha256(canonical_json(tomllib.loads((PIPELINE / TEXTS).read_text())))}
    pending = list(LIVE_ENTRIES if live else ENTRIES)
    while pending:
        name = pending.pop()
        if name not in files and name not in IGNORED:
            files[name], imported = _read(name)
            pending += imported
    return dict(sorted(files.items()))


@cache
def _read(name: str) -> tuple[str, list[str]]:
    """The digest of a file, and the files of this package that it imports."""
    tree = ast.parse((PIPELINE / name).read_bytes())
    digest = tree_digest(tree)  # which drops prose from the tree
    return digest, list(_imported(tree))


def tree_digest(tree: ast.AST) -> str:
    """Digest of what a syntax tree does, the same in every Python version that has its nodes."""
    return sha256(canonical_json(_content(_WithoutProse().visit(tree))))


class _WithoutProse(ast.NodeTransformer):
    """Drops docstrings, ``description=`` of settings and the arguments of raised errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "description" else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func)
        return node


def _content(node: Any) -> Any:
    """A syntax tree as JSON: the names of its nodes and their non-empty fields."""
    if isinstance(node, list):
        return [_content(item) for item in node]
    if not isinstance(node, ast.AST):
        return node if isinstance(node, str | int | None) else repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    return [type(node).__name__, {name: _content(value) for name, value in fields.items()}]


def _imported(tree: ast.AST) -> Iterator[str]:
    """Files of this package that a module imports, including inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                yield from _files_of(name)


def _files_of(module: str) -> Iterator[str]:
    package, *parts = module.split(".")
    path = "/".join(parts)
    if package == PIPELINE.name:
        candidates = (f"{path}.py", f"{path}/__init__.py")
        yield from (name for name in candidates if (PIPELINE / name).is_file())
