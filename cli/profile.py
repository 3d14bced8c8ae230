"""The output of --profile in extract and train: where the time went."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import RefusedError
from cli.show import columns, show
from pipeline.resources import check_writable

if TYPE_CHECKING:
    from pipeline.profile import Profile

SHOWN = 8


def check_trace(trace: Path) -> None:
    """Refuse, before any work, a place where the trace cannot be written."""
    if trace.exists() and not (trace.is_file() and os.access(trace, os.W_OK)):
        raise RefusedError(f"--profile {trace}: not a file that can be written; choose another")
    check_writable(trace.parent, "--profile")


def show_profile(profile: "Profile", trace: Path) -> None:
    """Print the stages, the costliest operators, and the bottleneck."""
    for title, seconds in (("stage", profile.stages), ("operator", profile.operators)):
        whole = sum(seconds.values())
        rows = [
            (name, f"{seconds[name]:.3f}", f"{100 * seconds[name] / whole:.0f} %")
            for name in sorted(seconds, key=lambda name: -seconds[name])[:SHOWN]
        ]
        print(columns([(title, "seconds", "share"), *rows]), end="\n\n")
    print(f"bottleneck: {profile.bottleneck}")
    print(f"trace: {show(trace)} (open it in chrome://tracing or ui.perfetto.dev)")
