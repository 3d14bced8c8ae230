"""Rendered faces and captions of their movement -> the bundled encoder ``mini``, a small CLIP.

    python -m pipeline.demo.train_mini            # about 10 minutes on 2 cores, no GPU

Writes open_clip's own format (``local-dir:``) and, from the files as written, ``zero_shot.json``.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.datasets.dfew import CLASSES
from pipeline.demo.face import UNITS, draw_person, render_face
from pipeline.demo.faces import NEUTRAL, draw_scenes, draw_units
from pipeline.interrupt import end_with

MINI = Path(__file__).parents[1] / "encoders" / "mini"
TEXTS = Path(__file__).parents[1] / "datasets" / "texts.toml"
IMAGE_PX = 64
STILLS_PER_IDENTITY = 12
# The face set seeds with [seed, 1 to 3, …], so these streams give other people whatever its seed.
TRAIN_STREAM, TEST_STREAM = 10, 11
FLOORS = {"names": 0.70, "sentences": 0.65}

MODEL_CFG: dict[str, Any] = {
    # As in ViT-B/32, the joint width equals the text width.
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": IMAGE_PX, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS_CFG: dict[str, Any] = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

# Wordings of each unit's movement; 45 is a blink. There are several per unit, so that words and not
# sentences carry the meaning.
MOVEMENTS: dict[int, tuple[str, ...]] = {
    1: (
        "inner brows raised",
        "inner brows drawn up",
        "the inner ends of the brows lifted",
        "a furrowed middle of the forehead",
        "oblique brows",
    ),
    2: (
        "outer brows raised",
        "the outer ends of the brows lifted",
        "horizontal lines across the forehead",
        "lines on the forehead",
    ),
    4: (
        "brows lowered",
        "brows drawn together",
        "knitted brows",
        "a frown",
        "vertical lines between the brows",
        "brows pulled down and together",
    ),
    5: (
        "upper eyelids raised",
        "eyes opened wide",
        "wide eyes",
        "staring eyes",
        "the white above the iris showing",
        "a glare",
    ),
    6: (
        "raised cheeks",
        "cheeks lifted",
        "crow's feet beside the eyes",
        "wrinkles beside the eyes",
        "cheeks pushed up",
    ),
    7: (
        "lower eyelids tightened",
        "tense eyelids",
        "narrowed eyes",
        "squinting eyes",
        "eyelids tightened",
    ),
    9: (
        "a wrinkled nose",
        "wrinkles on the nose",
        "nose wrinkled and upper lip raised",
        "a raised upper lip",
        "nostrils lifted",
    ),
    12: (
        "lip corners pulled up and back",
        "a smiling mouth",
        "a smile",
        "lip corners raised",
        "mouth corners pulled up",
        "a smiling mouth showing the upper teeth",
    ),
    15: (
        "lip corners pulled down",
        "lowered lip corners",
        "a drooping mouth",
        "mouth corners turned down",
        "lip corners depressed",
    ),
    16: (
        "lower lip pushed down",
        "lower lip pulled down",
        "the lower teeth showing",
        "lower lip depressed showing the lower teeth",
    ),
    20: (
        "lips stretched sideways",
        "a stretched mouth",
        "lips stretched back",
        "mouth corners pulled sideways",
        "lips stretched wide and tense",
    ),
    23: (
        "lips pressed thin",
        "lips tightened",
        "lips pressed together",
        "a tight mouth",
        "tense thin lips",
    ),
    26: (
        "the jaw dropped",
        "an open mouth",
        "jaw dropped with an open round mouth",
        "mouth open",
        "the mouth hanging open",
    ),
    45: ("eyes closed", "eyelids shut", "a blink"),
}
# Names for two movements seen together, used in place of either.
TOGETHER: dict[tuple[int, ...], tuple[str, ...]] = {
    (1, 2): ("both brows raised", "both brows raised high", "raised brows", "brows lifted high"),
    (1, 4): (
        "inner brows drawn up and together",
        "brows raised and drawn together",
        "oblique knitted brows",
        "drooping upper eyelids",
    ),
    (20, 26): ("the mouth tensely open", "a stretched open mouth"),
    (5, 7): ("upper eyelids raised in a glare", "a hard stare", "glaring eyes"),
}
AT_REST = (
    "relaxed brows",
    "brows at rest",
    "eyes open at rest",
    "calm eyes",
    "lips closed without tension",
    "a closed relaxed mouth",
    "a smooth and still face",
    "a smooth forehead",
    "no movement of the face",
    "a face at rest",
)
NAMES: dict[str, tuple[str, ...]] = {
    "happiness": ("happiness", "happy", "joy", "joyful", "cheerful"),
    "sadness": ("sadness", "sad", "sorrow", "unhappy", "grief"),
    "neutral": ("neutral", "neutrality", "calm", "expressionless", "no emotion"),
    "anger": ("anger", "angry", "rage", "furious", "mad"),
    "surprise": ("surprise", "surprised", "astonishment", "astonished", "amazed"),
    "disgust": ("disgust", "disgusted", "revulsion", "repelled", "aversion"),
    "fear": ("fear", "afraid", "fearful", "terror", "scared"),
}
FRAMES = (
    "{}",
    "{}",
    "{}",
    "an expression of {}",
    "a face showing {}",
    "a photo of a face showing {}",
    "a {} face",
    "a person with an expression of {}",
    "this person looks {}",
    "a facial expression of {}",
    "{} in a face",
    "the emotion is {}",
)
MOVEMENT_FRAMES = ("{}", "{}", "{}", "a face with {}", "a person with {}", "a photo of {}")


@dataclass(frozen=True)
class Stills:
    """pixels_NHWC uint8, units_NU in [0, 1]; expression_N is -1 for a free mix of units."""

    pixels_NHWC: NDArray[np.uint8]
    units_NU: NDArray[np.float64]
    expression_N: NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the model's files, measure them, and fail if accuracy is below the floors."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    _say(started, f"rendering {options.stills} stills")
    train = draw_stills(TRAIN_STREAM, options.stills, options.workers)
    model = _train(train, options, partial(_say, started))
    _save(model, options.out)
    seconds = time.perf_counter() - started
    _say(started, "measuring zero-shot on stills of new identities")
    accuracy = _record(options, seconds)["accuracy"]
    _say(started, json.dumps(accuracy))
    missed = [name for name, floor in FLOORS.items() if accuracy[name] < floor]
    if missed:
        raise SystemExit(f"zero-shot accuracy is below the floor for {', '.join(missed)}: {FLOORS}")


def zero_shot(model_dir: Path = MINI, per_class: int = 200, workers: int = 1) -> dict[str, Any]:
    """Accuracy of a written model on balanced stills of people it never saw.

    Returns ``accuracy`` (prompt set -> share correct), ``recall`` (prompt set -> class -> share),
    ``test_stills`` and ``prompts``: class names, "an expression of …", descriptor sentences.
    """
    model = open_clip.create_model(f"local-dir:{model_dir}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_dir}")
    stills = draw_stills(TEST_STREAM, per_class * len(CLASSES), workers)
    with torch.inference_mode():
        batches = torch.from_numpy(stills.pixels_NHWC).split(256)
        features_ND = torch.cat(
            [model.encode_image(_normalise(b), normalize=True) for b in batches]
        )
        result: dict[str, Any] = {"accuracy": {}, "recall": {}, "test_stills": len(features_ND)}
        prompts = class_prompts()
        for kind, texts in prompts.items():
            text_KD = model.encode_text(tokenizer(texts), normalize=True)
            predicted_N = (features_ND @ text_KD.T).argmax(1).numpy()
            right_N = predicted_N == stills.expression_N
            result["accuracy"][kind] = round(float(right_N.mean()), 4)
            result["recall"][kind] = {
                name: round(float(right_N[stills.expression_N == k].mean()), 3)
                for k, name in enumerate(CLASSES)
            }
    return {**result, "prompts": prompts}


def class_prompts() -> dict[str, list[str]]:
    """The prompt sets that are measured, each with one text per class in the order of CLASSES."""
    texts = tomllib.loads(TEXTS.read_text("utf-8"))["seven"]
    names = [texts[name]["name"] for name in CLASSES]
    return {
        "names": names,
        "expression_of": [f"an expression of {name}" for name in names],
        "sentences": [texts[name]["descriptors"] for name in CLASSES],
    }


def draw_stills(stream: int, count: int, workers: int = 1) -> Stills:
    """Stills of a stream's people; the test stream is balanced and has no free mixes of units."""
    per_identity = len(CLASSES) if stream == TEST_STREAM else STILLS_PER_IDENTITY
    identities = range(-(-count // per_identity))
    if workers == 1:
        drawn = [_draw_person(stream, per_identity, person) for person in identities]
    else:
        draw = partial(_draw_person, stream, per_identity)
        with ProcessPoolExecutor(workers, get_context("spawn"), end_with, (os.getpid(),)) as pool:
            drawn = list(pool.map(draw, identities, chunksize=8))
    pixels, units, expressions = (np.concatenate(part)[:count] for part in zip(*drawn, strict=True))
    return Stills(pixels, units, expressions)


def write_caption(rng: np.random.Generator, units_U: NDArray[np.float64], expression: int) -> str:
    """One of many true captions of a still: its expression's name, or movements it shows."""
    if expression >= 0 and rng.random() < 0.4:
        name = str(rng.choice(NAMES[CLASSES[expression]]))
        return str(rng.choice(FRAMES)).format(name)
    seen = {unit for unit, value in zip(UNITS, units_U, strict=True) if value > 0.25}
    if not seen:
        phrases = list(rng.choice(AT_REST, int(rng.integers(1, 5)), replace=False))
    else:
        phrases = _describe(rng, seen)
    text = ", ".join(phrases)
    if len(phrases) > 1 and rng.random() < 0.5:
        text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return str(rng.choice(MOVEMENT_FRAMES)).format(text)


def _describe(rng: np.random.Generator, seen: set[int]) -> list[str]:
    """Two to four phrases for the movements seen; some pairs get one phrase for both."""
    left = set(seen)
    phrases = []
    for pair, wordings in TOGETHER.items():
        if left.issuperset(pair) and rng.random() < 0.6:
            left -= set(pair)
            phrases.append(str(rng.choice(wordings)))
    phrases += [str(rng.choice(MOVEMENTS[unit])) for unit in sorted(left)]
    rng.shuffle(phrases)
    return phrases[: int(rng.integers(2, 5))]


def _draw_person(
    stream: int, count: int, person: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]:
    """One person's stills at 64 px: drawn, compressed and resized like the face set's frames."""
    rng = np.random.default_rng([person, stream])
    identity = draw_person(rng)
    pixels, units, expressions = [], [], []
    for number in range(count):
        if stream == TEST_STREAM:
            expression = number
        else:
            expression = -1 if rng.random() < 0.25 else int(rng.integers(len(CLASSES)))
        units_U = _still_units(rng, expression)
        names = (("occluded", 0.12), ("extreme_pose", 0.1))
        subsets = tuple(name for name, chance in names if rng.random() < chance)
        frame_HWC = render_face(identity, units_U, draw_scenes(rng, 1, subsets)[0])
        pixels.append(_compress(frame_HWC, int(rng.integers(60, 96))))
        units.append(units_U)
        expressions.append(expression)
    return np.stack(pixels), np.stack(units), np.array(expressions)


def _still_units(rng: np.random.Generator, expression: int) -> NDArray[np.float64]:
    """Units of an expression at intensity .3 to 1, or of a free mix of one to five movements."""
    intensities_TK = np.zeros((1, len(CLASSES)))
    if expression not in (-1, NEUTRAL):
        intensities_TK[0, expression] = rng.uniform(0.3, 1.0)
    units_U = draw_units(rng, intensities_TK)[0]
    if expression == -1:
        chosen = rng.choice(len(UNITS), int(rng.integers(1, 6)), replace=False)
        units_U[chosen] = rng.uniform(0.3, 1.0, len(chosen))
    return units_U


def _compress(frame_HWC: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=quality)
    image = Image.open(buffer).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _normalise(pixels_NHWC: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], channels last in memory."""
    pixels = pixels_NHWC.shape[1] * pixels_NHWC.shape[2]
    # Repeated to a whole image's length, the broadcast runs over long rows: 10x faster than over 3.
    mean = torch.tensor(PREPROCESS_CFG["mean"]).repeat(pixels)
    std = torch.tensor(PREPROCESS_CFG["std"]).repeat(pixels)
    flat = pixels_NHWC.flatten(1).float().div_(255).sub_(mean).div_(std)
    return flat.view(pixels_NHWC.shape).permute(0, 3, 1, 2)


def _train(stills: Stills, options: argparse.Namespace, say: Callable[[str], None]) -> Any:
    """Minimise CLIP's loss + 2 × the squared error of an auxiliary head on standardised units."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng([options.seed, 12])
    model = open_clip.CLIP(**MODEL_CFG).to(memory_format=torch.channels_last).train()
    tokenizer = open_clip.SimpleTokenizer()
    head = nn.Linear(MODEL_CFG["embed_dim"], len(UNITS))
    spread_U = np.maximum(stills.units_NU.std(0), 0.05)
    target_NU = torch.from_numpy((stills.units_NU - stills.units_NU.mean(0)) / spread_U).float()
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.lr, total_steps=options.steps, pct_start=0.05
    )
    pixels = torch.from_numpy(stills.pixels_NHWC)
    for step in range(options.steps):
        chosen_B = rng.choice(len(pixels), options.batch, replace=False)
        captions = [
            write_caption(rng, stills.units_NU[i], int(stills.expression_N[i])) for i in chosen_B
        ]
        images = _normalise(pixels[chosen_B])
        if rng.random() < 0.5:
            images = images.flip(3)
        with torch.autocast("cpu", torch.bfloat16):
            image_BD = model.encode_image(images).float()
        text_BD = _encode_text(model, tokenizer(captions))
        contrast = _contrastive_loss(image_BD, text_BD, model.logit_scale.exp(), captions)
        units = F.mse_loss(head(F.normalize(image_BD, dim=-1) * 8), target_NU[chosen_B])
        optimiser.zero_grad()
        (contrast + 2 * units).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % 100 == 0 or step == options.steps - 1:
            say(f"step {step}/{options.steps}: contrastive {contrast:.3f}, units {units:.3f}")
    return model.eval()


def _encode_text(model: Any, tokens_BL: Tensor) -> Tensor:
    """``model.encode_text`` without the padding after the longest caption: attention is causal."""
    length = int((tokens_BL != 0).sum(1).max())
    tokens_BL = tokens_BL[:, :length]
    states = model.token_embedding(tokens_BL) + model.positional_embedding[:length]
    states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
    states = model.ln_final(states)
    rows = torch.arange(len(states))
    projected: Tensor = states[rows, tokens_BL.argmax(1)] @ model.text_projection
    return projected


def _contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, captions: list[str]
) -> Tensor:
    """CLIP's symmetric cross-entropy; equal captions of a batch share the target."""
    logits_BB = scale * F.normalize(image_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T
    index = {caption: number for number, caption in enumerate(captions)}
    group_B = torch.tensor([index[caption] for caption in captions])
    same_BB = (group_B[:, None] == group_B[None, :]).float()
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    loss = F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)
    return loss / 2


def _save(model: nn.Module, folder: Path) -> None:
    """open_clip's local-dir format; weights in half precision, which open_clip reads as float32."""
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "open_clip_model.safetensors")


def _record(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Measure the written model; save the figures, and how they were obtained, beside it."""
    record = {
        **zero_shot(options.out, options.test_per_class, options.workers),
        "floors": FLOORS,
        "command": "python -m pipeline.demo.train_mini",
        "training_stills": options.stills,
        "steps": options.steps,
        "batch": options.batch,
        "lr": options.lr,
        "seed": options.seed,
        "threads": options.threads,
        "training_seconds": round(seconds),
        "machine": f"{os.cpu_count()} cores, no GPU",
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
        "weights_sha256": _sha256(options.out / "open_clip_model.safetensors"),
    }
    (options.out / "zero_shot.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(started: float, text: str) -> None:
    print(f"[{time.perf_counter() - started:6.1f} s] {text}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo.train_mini",
        description="Train the bundled encoder mini on rendered faces and measure it zero-shot.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=MINI, help="output folder")
    parser.add_argument("--stills", type=int, default=24_000, help="rendered training stills")
    parser.add_argument("--steps", type=int, default=2_700, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=96, help="stills per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (cosine)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="rendering processes"
    )
    parser.add_argument("--test-per-class", type=int, default=200, help="test stills per class")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="training threads; fewer than the cores if the machine is shared",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
