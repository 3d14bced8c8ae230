"""tgdfer config: list the presets, show the settings."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from cli.options import SetOption, check_config, complete_presets
from cli.show import columns, next_step
from cli.show import show as show_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

config_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List the presets, show the settings."
)

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRESET|FILE",
        help="A preset or a TOML file.",
        callback=check_config,
        autocompletion=complete_presets,
    ),
]


@dataclass(frozen=True)
class Setting:
    """One key of ``--set``."""

    table: str
    name: str
    value: Any
    default: Any
    kind: str  # its type and range
    description: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Key, value, description, and type, with the default if another value is set."""
        default = f"; default {toml(self.default)}" if self.value != self.default else ""
        return f"{self.table}.{self.name}", toml(self.value), self.description, self.kind + default


@config_app.command(name="list")
def list_() -> None:
    """List the presets, with one line on each.

    \b
    tgdfer config list
    """
    from pipeline.config import PRESETS

    print(columns([(name, _about(name)) for name in PRESETS]))
    next_step("tgdfer", "config", "show", PRESETS[0])


@config_app.command()
def show(
    config: ConfigArgument = "paper",
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print a file to edit, for --config.")
    ] = False,
) -> None:
    """Show every key of --set with its value, type and meaning.

    \b
    What the preset paper sets:
      tgdfer config show paper
    A file of your own to start from:
      tgdfer config show paper --toml > mine.toml
    """
    from pipeline.config import load_method

    method = load_method(config, settings)
    if as_toml:
        print(settings_file(method))
        next_step("tgdfer", "train", "--config", "FILE")
        return
    found = list(_settings(method))
    table = columns([("key", "value", "meaning", "type"), *(setting.cells for setting in found)])
    widest = max(map(len, table.splitlines()))
    if sys.stdout.isatty() and widest > shutil.get_terminal_size().columns:
        table = "\n".join(_stacked(setting) for setting in found)
    print(table)
    next_step("tgdfer", "train", "--config", config)


def settings_file(method: "BaseModel") -> str:
    """A TOML file of all settings, each with its meaning and type."""
    settings, lines = list(_settings(method)), list[str]()
    for table in dict.fromkeys(setting.table for setting in settings):
        rows = [
            (f"{setting.name} = {toml(setting.value)}", f"# {setting.description} [{setting.kind}]")
            for setting in settings
            if setting.table == table
        ]
        lines += [f"[{table}]", columns(rows), ""]
    return "\n".join(lines).rstrip()


def _stacked(setting: Setting) -> str:
    """A setting on several lines, for narrow terminals."""
    key, value, meaning, kind = setting.cells
    lines = (f"{key} = {value}", meaning, f"({kind})")
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, initial_indent=indent, subsequent_indent="  ")
        for line, indent in zip(lines, ("", "  ", "  "), strict=True)
    )


def toml(value: Any) -> str:
    """A value in TOML; JSON's numbers, strings, lists and booleans are valid TOML."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if show_text(c) == c else f"\\U{ord(c):08x}" for c in text)


def _about(preset: str) -> str:
    """The first sentence of a preset's opening comment."""
    text = files("pipeline").joinpath(f"presets/{preset}.toml").read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.partition("\n\n")[0].splitlines())
    return re.split(r"(?<=\.) ", comment)[0]


def _settings(method: "BaseModel") -> Iterator[Setting]:
    for table in type(method).model_fields:
        part = getattr(method, table)
        values = part.model_dump(mode="json")
        for name, field in type(part).model_fields.items():
            yield Setting(
                table,
                name,
                values[name],
                list(field.default) if isinstance(field.default, tuple) else field.default,
                _kind(field),
                field.description or "",
            )


def _kind(field: "FieldInfo") -> str:
    """The choices of a field, or its type and range."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"list of {_name(get_args(annotation)[0])}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f" {sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    return _name(annotation) + ",".join(limits)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))
