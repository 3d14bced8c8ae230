"""``benchmarks/*.json`` -> ``docs/performance.md``; run as ``python -m benchmarks.report``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent / "docs/performance.md"

HEAD = """# Speed, as measured

Made by `python -m benchmarks.report` from `benchmarks/*.json`; `make bench` measures anew,
`python -m benchmarks NAME` one of them. The machines are shared and noisy: what is compared was
measured by turns, and ratios are what to quote. A floor is the larger of a step's operations over
the rate of a large matrix product and its unavoidable bytes over the rate of a copy, both measured
in the same process.
"""
NO_GPU = "\nNothing here was run on a GPU: `benchmarks/stacks-gpu.json` is not there yet.\n"


def main() -> None:
    """Write the page."""
    OUT.write_text(page({path.stem: json.loads(path.read_text()) for path in HERE.glob("*.json")}))
    print(f"written: {OUT}")


def page(reports: dict[str, Any]) -> str:
    """The page, from the reports by name; a report that is not there leaves its section out."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        if name in reports:
            parts.append(section(reports[name]))
    if "stacks-gpu" not in reports:
        parts.append(NO_GPU)
    return "".join(parts)


def _extraction(report: dict[str, Any]) -> str:
    rows = [
        [
            rates["encoder"],
            f"{rates['precision']} on {rates['device']}",
            f"{max(rates['bare_torch_threads'], rates['bare_per_core']):,.0f}",
            f"{rates['whole']:,.0f}",
            f"{rates['ratio']:.2f}",
        ]
        for rates in report["rates_frames_per_second"]
    ]
    head = ["encoder", "precision", "bare encoder, frames/s", "extraction, frames/s", "ratio"]
    memory = report["peak_memory_mib_by_videos"]
    shown = " and ".join(f"{mib:,} MiB at {count} videos" for count, mib in memory.items())
    text = "The ratio is the median of the rounds' own. Peak memory: " + shown + "."
    return _section("Extraction", "extraction", report, _table(head, rows), text)


def _store(report: dict[str, Any]) -> str:
    rates, ratios = report["gigabytes_per_second"], report["load_over_cat"]
    rows = [[name, f"{rate:.2f}"] for name, rate in rates.items()]
    block = report["milliseconds_per_block_of_one_view"]
    text = (
        f"Of {report['store']['videos']:,} videos x {report['store']['views']} views. Loading "
        f"over `cat` of the same files: {ratios['cold']:.2f} cold, {ratios['warm']:.2f} from the "
        f"page cache. Opening takes {1000 * report['open_seconds']:.0f} ms. A committed block of "
        f"one view costs {block['fsync']:.1f} ms, without fsync {block['no fsync']:.1f} ms."
    )
    return _section("The store", "store", report, _table(["", "GB/s"], rows), text)


def _training(report: dict[str, Any]) -> str:
    step = report["step"]
    rows = [
        [name, _time(spent), f"{step['ratios'][f'{name} / cached']:.0f}"]
        for name, spent in step["seconds"].items()
    ]
    table = _table(["a step of 48 videos, ViT-B/32", "time", "times the cached one"], rows)
    packed = [
        [
            name,
            str(found["packed_positions"]),
            str(found["full_positions"]),
            f"{found['ratio']:.1f}",
        ]
        for name, found in report["prompts"].items()
    ]
    head = ["seven class prompts, forward + backward", "packed positions", "full", "times faster"]
    return _section("Cached against uncached", "training", report, table, _table(head, packed))


def _stacks(report: dict[str, Any]) -> str:
    parts = []
    for encoder in ("mini", "ViT-B/32"):
        found = report[encoder]
        head = [f"{encoder}, runs in a stack", "step", "a run's share"]
        shares = found["seconds_of_a_run_in_a_step"]
        rows = [
            [name.split()[0], _time(spent), _time(shares[name])]
            for name, spent in found["step_seconds"].items()
        ]
        stages = found["stages_seconds"]
        whole = sum(stages.values())
        floor = found["floor_of_a_run"]
        parts.append(_table(head, rows))
        shown = ", ".join(f"{name} {100 * s / whole:.0f} %" for name, s in stages.items())
        parts.append(
            f"Stages of a step of five runs: {shown}. The floor of a run's step is "
            f"{floor['gflop']:.2f} GFLOP and {1000 * floor['gigabytes']:.1f} MB, "
            f"{_time(floor['seconds'])}: {100 * found['fraction_of_floor']:.0f} % of the best "
            f"share. The best stack is {found['times_faster_than_one_by_one']:.2f} times as fast "
            "as runs one by one."
        )
        if "kernels" in found:
            ways = ("kernel", "definition", "torch.compile")
            kernels = [[n, *(_time(t[way]) for way in ways)] for n, t in found["kernels"].items()]
            parts.append(_table(["forward + backward, 15 runs", *ways], kernels))
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    top = report["peaks"]
    parts.append(
        f"One process of {threads}; a large product reaches {top['gflop_per_second']:,.0f} "
        f"GFLOP/s, a copy {top['gigabytes_per_second']:.1f} GB/s."
    )
    return _section("A step, stacked", "stacks", report, *parts)


def _tables(report: dict[str, Any]) -> str:
    names = ", ".join(report["tables"])
    rows = [
        [name, ", ".join(f"{spent:.0f} s" for spent in taken)]
        for name, taken in report["seconds"].items()
    ]
    table = _table([f"{names}, {report['epochs']} epochs a run, embedded faces", "rounds"], rows)
    text = ""
    if "before" in report:
        faster = " and ".join(f"{ratio:.2f}" for ratio in report["times_faster"])
        text = f"Before is commit {report['before']}; this one is {faster} times as fast."
    return _section("Whole tables", "tables", report, table, text)


SECTIONS = {
    "extraction": _extraction,
    "store": _store,
    "training": _training,
    "stacks": _stacks,
    "stacks-gpu": _stacks,
    "tables": _tables,
}


def _section(title: str, command: str, report: dict[str, Any], *parts: str) -> str:
    about = report["machine"]
    where = f"{about.get('device', 'cpu')}, {about['cores']} cores, load {about['load_before']:.1f}"
    where += " before" + (f", torch {about['torch']}" if "torch" in about else "")
    body = "\n\n".join(part.strip() for part in parts if part)
    return f"\n## {title}\n\n`python -m benchmarks.{command}` ({where}).\n\n{body}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _time(spent: float) -> str:
    return f"{spent:.2f} s" if spent >= 1 else f"{1000 * spent:.3g} ms"


if __name__ == "__main__":
    main()
