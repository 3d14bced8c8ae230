"""What no source file may do: execute data, start a shell, or unpickle."""

import ast
from collections.abc import Iterator

import pytest

from support.commands import ROOT

FORBIDDEN_MODULES = {
    *(
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "tarfile",
        "runpy",
    ),
}
# Called, or given another name.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "input", "importlib.import_module"),
    *("os.system", "os.popen", "asyncio.create_subprocess_shell"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.hub.load"),
    *("torch.serialization.load", "pandas.read_pickle", "pandas.eval", "shutil.unpack_archive"),
}
FORBIDDEN_METHODS = {"extractall"}
# Call -> the keyword and the value that it must have.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.save": ("allow_pickle", False),
}
SOURCES = sorted(
    [ROOT / "tgdfer.py"]
    + [path for room in ("cache", "pipeline", "cli") for path in (ROOT / room).rglob("*.py")]
)


def findings(source: str) -> Iterator[str]:
    """What is forbidden in a source, by line; names are followed through its imports."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for _, full in _imported(node):
                if full.partition(".")[0] in FORBIDDEN_MODULES:
                    yield f"{node.lineno}: imports {full}"
        read = isinstance(getattr(node, "ctx", None), ast.Load)
        if isinstance(node, ast.Name | ast.Attribute) and read:
            name = _full_name(node, names).removeprefix("builtins.")
            if name in FORBIDDEN:
                yield f"{node.lineno}: uses {name}"
        if isinstance(node, ast.Dict) and "shell" in map(_constant, filter(None, node.keys)):
            yield f"{node.lineno}: may start a shell"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {what}" for what in _faults(node, names))


def _faults(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = _full_name(call.func, names)
    given = {word.arg: word.value for word in call.keywords}
    if isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
        yield f"calls {call.func.attr}"
    if "shell" in given and _constant(given["shell"]) is not False:
        yield "starts a shell"
    if name in REQUIRED:
        keyword, value = REQUIRED[name]
        if keyword not in given or _constant(given[keyword]) is not value:
            yield f"calls {name} without {keyword}={value}"
    elif "allow_pickle" in given and _constant(given["allow_pickle"]) is not False:
        yield "allows pickles"


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in the source, what it is)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield alias.asname or first, alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def test_no_source_executes_data_or_starts_a_shell() -> None:
    found = {path.relative_to(ROOT): list(findings(path.read_text())) for path in SOURCES}
    assert {path: faults for path, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from pickle import loads as read",
        "import marshal as m",
        "import os as o; o.system('ls')",
        "from os import popen; popen('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess; subprocess.run('ls', shell=wanted)",
        "import yaml; yaml.load(text)",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "from torch import load; load(path, weights_only=wanted)",
        "import torch; torch.jit.load(path)",
        "import numpy as np; np.load(path)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import zipfile; zipfile.ZipFile(path).extractall()",
        "import tarfile",
        "import builtins; builtins.eval(text)",
        "run = eval",
        "import yaml; yaml.unsafe_load(text)",
        "import asyncio; asyncio.create_subprocess_shell(text)",
        "import subprocess; subprocess.run('ls', **{'shell': True})",
        "import importlib; importlib.import_module(name)",
        "import numpy as np; np.lib.format.read_array(file, allow_pickle=True)",
    ],
)
def test_gate_finds_what_is_forbidden(planted: str) -> None:
    assert len(list(findings(f"'''eval in words'''\n# exec in words\nx = 1\n{planted}\n"))) == 1


def test_gate_lets_safe_calls_pass() -> None:
    safe = (
        "import numpy as np, torch, pickletools\n"
        "np.load(path, allow_pickle=False)\n"
        "torch.load(path, weights_only=True)\n"
        "model.eval()\n"
        "subprocess.run(['ls'], shell=False)\n"
    )
    assert list(findings(safe)) == []
