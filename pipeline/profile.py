"""A piece of work -> a trace of it, and where its time went.

The trace is in Chrome's format: open it in chrome://tracing or ui.perfetto.dev.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# PyTorch's profiler logs to stderr unless this is set before it is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_STAGE = "stage: "


@dataclass
class Profile:
    """Seconds of each stage, summed over threads, and of each operator without its callees."""

    stages: dict[str, float] = field(default_factory=dict)
    operators: dict[str, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> str:
        """The slowest stage, with its share of the time."""
        stage = max(self.stages, key=lambda name: self.stages[name])
        share = 100 * self.stages[stage] / sum(self.stages.values())
        return f"{stage} ({share:.0f} % of the time of all stages)"


def stage(name: str) -> AbstractContextManager[object]:
    """Mark the code in this context as a stage; costs microseconds when nothing is recorded."""
    from torch.profiler import record_function

    return record_function(_STAGE + name)


@contextmanager
def profiled(trace: Path) -> Iterator[Profile]:
    """Record all threads in this context, then fill the profile and write ``trace``."""
    import torch
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    found = Profile()
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=everywhere) as recorded:
        yield found
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.key.startswith(_STAGE):
            whole = max(event.cpu_time_total, event.device_time_total)
            found.stages[event.key.removeprefix(_STAGE)] = whole / 1e6
        elif microseconds:
            found.operators[event.key] = microseconds / 1e6
    trace.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(trace))
