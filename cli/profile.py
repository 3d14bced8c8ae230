"""The output of --profile in extract and train: where the time went."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.show import columns, show

if TYPE_CHECKING:
    from pipeline.profile import Profile

SHOWN = 8


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
