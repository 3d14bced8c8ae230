"""What extract and train share about --profile: the option, and where the time went."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.profile import Profile

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="TRACE",
        help="Do a small part of the work, keep nothing of it, and write a trace of it.",
    ),
]
SHOWN = 8


def show_profile(profile: "Profile", trace: Path) -> None:
    """Print the stages, the costliest operators, and the bottleneck."""
    from rich.console import Console
    from rich.table import Table

    for title, seconds in (("stage", profile.stages), ("operator", profile.operators)):
        table = Table(title, "seconds", "share")
        whole = sum(seconds.values())
        for name in sorted(seconds, key=lambda name: -seconds[name])[:SHOWN]:
            table.add_row(name, f"{seconds[name]:.3f}", f"{100 * seconds[name] / whole:.0f} %")
        Console().print(table)
    print(f"bottleneck: {profile.bottleneck}")
    print(f"trace: {trace} (open it in chrome://tracing or ui.perfetto.dev)")
