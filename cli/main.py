"""tgdfer: the commands and their exit codes."""

import sys

import typer

from cache.errors import RefusedError, StorageError
from cli.ablate import ablate
from cli.compare import compare
from cli.extract import extract
from cli.show import show
from cli.store import store_app
from cli.train import train

REFUSED, STORAGE_FAILED = 2, 5

app = typer.Typer(
    name="tgdfer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Dynamic facial expression recognition with text guidance (TG-DFER) from cached CLIP "
        "features.\n\nWithout data of your own, start with:  **tgdfer extract**, then  "
        "**tgdfer train --cached**"
    ),
)
for command in (extract, train, ablate, compare):
    app.command()(command)
app.add_typer(store_app, name="store")


def run() -> None:
    """Entry point: a known failure becomes one sentence on stderr and its exit code."""
    try:
        app()
    except RefusedError as error:
        _fail(str(error), REFUSED)
    except StorageError as error:
        _fail(str(error), STORAGE_FAILED)


def _fail(message: str, code: int) -> None:
    print("error: " + "\n".join(show(line) for line in message.splitlines()), file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    run()
