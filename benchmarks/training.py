"""What the cache and the packed prompts save in a training step, at the sizes of ViT-B/32.

Run as ``python -m benchmarks.training``; writes ``benchmarks/training.json``. The weights are
random: the time does not depend on them. The ways of a comparison are measured in one process;
quote the ratios of their medians.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transformer import text_global_pool

from benchmarks.extraction import random_vit
from benchmarks.generated import CLASSES
from benchmarks.machine import arguments, by_turns, machine, write
from benchmarks.views import SOURCES, write_source
from cache.store import open_store
from pipeline.config import PromptConfig, Run, load_method
from pipeline.datasets.texts import class_texts
from pipeline.datasets.videos import Fold, VideoList
from pipeline.extract.live import open_live
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.model.prompts import Prompts
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.train.features import TrainingData, load_training_data
from pipeline.train.stack import train_stack

OUT = Path(__file__).with_suffix(".json")
VIDEOS = 48  # the paper's batch
ROUNDS = 3


def main() -> None:
    """Measure, print and write the report."""
    options = arguments(__doc__, OUT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = random_vit(folder / "vit.safetensors")
        report = {
            "machine": machine(),
            "step": _measure_steps(folder, files),
        }
        tower = open_store(folder / "s.zarr")
        text = load_text_tower(tower.text_weights, tower.text_config)
        report["prompts"] = _measure_prompts(text)
    write(report, options.out)


def _measure_steps(folder: Path, files: Any) -> dict[str, Any]:
    """Seconds of a step of 48 videos, including the evaluation of one test video."""
    ids = tuple(str(n) for n in range(VIDEOS + 1))
    written = (write_source(folder / i, *SOURCES["256-px mp4"], seed=int(i)) for i in ids)
    videos = tuple(
        replace(video, id=i, label=int(i) % 7) for i, video in zip(ids, written, strict=True)
    )
    source = VideoList("benchmark", CLASSES, videos, (Fold("1", ids[:VIDEOS], ids[VIDEOS:]),))
    settings = ExtractSettings(views=2)
    extract(source, folder / "s.zarr", files, settings)
    cached = load_training_data(open_store(folder / "s.zarr"), torch.device("cpu"))
    steps = {"cached": _steps(cached, 9)}
    for name, rate, count in (("frozen encoder", 0.0, 3), ("trained encoder", 1e-5, 2)):
        store, features, weights, config = open_live(source, files, settings, rate > 0)
        tower = load_text_tower(weights, config)
        data = TrainingData(
            store, features, cached.targets_2NK, np.ones(VIDEOS + 1, np.bool_), tower
        )
        steps[name] = _steps(data, count, rate)
    seconds = {name: statistics.median(taken) for name, taken in steps.items()}
    ratios = {f"{name} / cached": s / seconds["cached"] for name, s in seconds.items()}
    return {"videos": VIDEOS, "steps": steps, "seconds": seconds, "ratios": ratios}


def _steps(data: TrainingData, count: int, lr_encoder: float = 0.0) -> list[float]:
    """Seconds of ``count`` steps, after one that is not counted; each epoch is one step."""
    settings = [f"optimiser.epochs={count + 1}", f"optimiser.batch={VIDEOS}"]
    settings += [f"optimiser.lr_encoder={lr_encoder}"]
    settings += ["optimiser.micro_batch=2"] if lr_encoder else []
    ended = []
    method = load_method("paper", settings)
    run = Run(method=method, fold="1", seed=0)
    train_stack(data, [run], lambda epochs: ended.append(time.perf_counter()))
    return [after - before for before, after in pairwise(ended)]


def _measure_prompts(tower: TextTower) -> dict[str, Any]:
    """Seconds of forward and backward through the text tower for seven class prompts."""
    texts = class_texts(CLASSES).of("class")
    report = {}
    for context, length in (("shared", 16), ("class_specific", 8)):
        config = PromptConfig.model_validate({"context_length": length, "context": context})
        prompts = Prompts([torch.Generator().manual_seed(0)], tower, texts, True, config)
        full = torch.randn(len(texts), 77, tower.width, requires_grad=True)
        tokens = torch.zeros(len(texts), 77, dtype=torch.int64)
        tokens[:, -1] = 49407
        ways = {
            "packed": partial(_packed, prompts),
            "all 77": partial(_full, tower, full, tokens),
        }
        seconds = by_turns(ways, ROUNDS)
        report[f"{context} context of {length}"] = {
            "packed_positions": len(prompts.packing.token_L),
            "full_positions": 7 * 77,
            "seconds": seconds,
            "ratio": seconds["all 77"] / seconds["packed"],
        }
    return report


def _packed(prompts: Prompts) -> None:
    prompts().sum().backward()


def _full(tower: TextTower, embedded_KLW: torch.Tensor, tokens_KL: torch.Tensor) -> None:
    own = tower.tower
    x = own.transformer(embedded_KLW + own.positional_embedding, attn_mask=own.attn_mask)
    pooled = text_global_pool(own.ln_final(x), tokens_KL, "argmax")
    (pooled @ own.text_projection).sum().backward()


if __name__ == "__main__":
    main()
