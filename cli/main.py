"""tgdfer: the commands and their exit codes."""

import errno
import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from cache.errors import RefusedError, StorageError
from cli.ablate import ablate
from cli.compare import compare
from cli.config import config_app
from cli.data import data_app
from cli.demo import demo
from cli.doctor import doctor
from cli.evaluate import evaluate
from cli.export import export
from cli.extract import extract
from cli.faces import faces
from cli.predict import predict
from cli.report import report
from cli.runs import runs_app
from cli.show import ClosedOutputError, escape_output, show
from cli.store import store_app
from cli.train import train
from cli.tune import tune
from pipeline.device import is_out_of_memory
from pipeline.engines.task import TaskError
from pipeline.interrupt import StoppedError, explain_interrupt

FAILED, REFUSED, STORAGE_FAILED = 1, 2, 5
# What a disk says of a path that cannot be meant.
_OF_THE_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL}

# Plain help: Markdown and boxes break the examples and are slow to load.
app = typer.Typer(
    name="tgdfer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(extract, train, ablate, compare, tune, report),
    *(predict, faces, evaluate, export, demo, doctor),
):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")
app.add_typer(runs_app, name="runs")
app.add_typer(config_app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tgdfer {version('tgdfer')}")
        raise typer.Exit


@app.callback()
def tgdfer(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Text-guided facial expression recognition in videos, from cached CLIP features.

    \b
    To start without data of your own:
      tgdfer extract
      tgdfer train --cached
    """


def run() -> None:
    """Entry point: a known failure becomes one sentence on stderr and its exit code."""
    escape_output()
    explain_interrupt()
    try:
        try:
            app(prog_name="tgdfer")
        finally:
            sys.stdout.flush()
    except RefusedError as error:
        _fail(str(error), REFUSED)
    except StorageError as error:
        _fail(error.strerror or str(error), STORAGE_FAILED)
    except TaskError as error:
        _fail(str(error), FAILED)
    except OSError as error:
        if error.filename is None:
            raise
        of_the_path = error.errno in _OF_THE_PATH
        _fail(f"{error.filename}: {error.strerror}", REFUSED if of_the_path else STORAGE_FAILED)
    except RuntimeError as error:
        if "torch" not in sys.modules or not is_out_of_memory(error):
            raise
        _fail("the GPU's memory is too small; use smaller batches, or --device cpu", FAILED)
    except StoppedError as error:
        raise SystemExit(128 + error.signal) from None
    except ClosedOutputError as error:
        _leave_without_output(error)


def _fail(message: str, code: int) -> None:
    # Further lines are indented: a line break in a name cannot forge a message of its own.
    print("error: " + "\n  ".join(map(show, message.split("\n"))), file=sys.stderr)
    raise SystemExit(code)


def _leave_without_output(error: ClosedOutputError) -> None:
    with suppress(OSError, ValueError):
        # What is still buffered would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:  # as for any program in a pipe that its reader closes
        raise SystemExit(128 + signal.SIGPIPE)
    _fail(f"cannot write to standard output: {error}", STORAGE_FAILED)


if __name__ == "__main__":
    run()
