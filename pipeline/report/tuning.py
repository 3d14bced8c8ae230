"""A finished search -> ``tune.json`` with every trial, and a table to read."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cache.identity import flatten
from pipeline.config import MethodConfig, effective
from pipeline.show import markdown_line, show
from pipeline.train.halving import HELD_OUT_SHARE, Search, Trial

SHOWN = 20  # trials in the table; tune.json has all


def tuning_json(search: Search, trials: Sequence[Trial], header: Mapping[str, Any]) -> str:
    """Everything that the search did: its budget, and every trial with its scores."""
    content = {
        **header,
        "fold": search.fold,
        "held_out_share": HELD_OUT_SHARE,
        "score": "mean of UAR and WAR on the held-out videos, mean over the hold-outs",
        "rungs": [asdict(rung) for rung in search.rungs],
        "run_epochs": sum(rung.run_epochs for rung in search.rungs),
        "seconds": round(_seconds(trials), 1),
        "base": search.base.model_dump(mode="json"),
        "winner": trials[0].number,
        "trials": [
            {
                "number": trial.number,
                "changes": changes(trial.method, search.base),
                "scores": [None if math.isnan(score) else score for score in trial.scores],
                "hold_outs": [[asdict(own) for own in rung] for rung in trial.rungs],
            }
            for trial in trials
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def tuning_table(search: Search, trials: Sequence[Trial], header: Mapping[str, Any]) -> str:
    """Markdown: the best trials, what they change in the base, and their scores."""
    rungs = [f"{r.trials} trials, {r.epochs} epochs, {r.hold_outs} hold-outs" for r in search.rungs]
    notes = {
        **header,
        "score": "mean of UAR and WAR in per cent, on videos held out of the training part of fold "
        f"{search.fold}; no test video was looked at",
        "budget": f"{sum(rung.run_epochs for rung in search.rungs)} run-epochs, "
        f"{_seconds(trials):.0f} s of training: {'; '.join(rungs)}",
    }
    lines = ["# Search for settings", "", *[f"- {n}: {show(str(t))}" for n, t in notes.items()], ""]
    columns = ["trial", *(f"{rung.epochs} epochs" for rung in search.rungs), "changed settings"]
    lines += [markdown_line(columns), markdown_line(["---"] * len(columns))]
    for trial in trials[:SHOWN]:
        scores = [f"{100 * score:.2f}" for score in trial.scores]
        scores += ["–"] * (len(search.rungs) - len(scores))
        changed = changes(trial.method, search.base)
        said = ", ".join(f"{key}={value}" for key, value in changed.items()) or "none: the base"
        lines.append(markdown_line([trial.number, *scores, said]))
    if len(trials) > SHOWN:
        lines += ["", f"{len(trials) - SHOWN} more trials are in tune.json."]
    return "\n".join(lines) + "\n"


def changes(method: MethodConfig, base: MethodConfig) -> dict[str, Any]:
    """The settings with an effect in which a method differs from the base, with dotted names."""
    before = flatten(effective(base).model_dump(mode="json"))
    after = flatten(effective(method).model_dump(mode="json"))
    return {name: value for name, value in after.items() if value != before[name]}


def _seconds(trials: Sequence[Trial]) -> float:
    return sum(own.seconds for trial in trials for rung in trial.rungs for own in rung)
