"""A damaged store + its videos -> the store as it was, and quarantined videos tried again."""

from collections.abc import Mapping
from dataclasses import replace

from cache.check import Repair
from cache.identity import WHOLE_FRAMES
from cache.plan import Plan
from cache.writer import check_same
from pipeline.datasets.videos import VideoList
from pipeline.device import choose_device
from pipeline.encoders.clip import EncoderFiles
from pipeline.extract.loop import OnProgress, Summary, extract
from pipeline.extract.planning import (
    ExtractSettings,
    cropping_of,
    known_to,
    make_plan,
    parse_precision,
)
from pipeline.video.augmentation import VIEW_RULES
from pipeline.video.sampling import TRAINING_RULES


def settings_of(plan: Plan, settings: ExtractSettings) -> ExtractSettings:
    """``settings``, with the fields that ``plan`` determines taken from it."""
    identity = plan.identity
    precision = parse_precision(identity.precision or "auto")
    device = identity.device or "auto"
    return replace(
        settings,
        views=plan.views,
        frames=plan.frames,
        batch_frames=identity.batch_frames,
        seed=identity.seed,
        sampling=_name_of(identity.training_frames, TRAINING_RULES, settings.sampling),
        augmentation=_name_of(identity.view_rule, VIEW_RULES, settings.augmentation),
        faces=cropping_of(identity.faces) or WHOLE_FRAMES,
        precision=precision,
        device=settings.device if settings.device.startswith(device) else device,
    )


def _name_of(rule: str, rules: Mapping[str, str], other: str) -> str:
    """The name of a store's rule, or ``other`` if it is one of another version."""
    return next((name for name, text in rules.items() if text == rule), other)


def _those_of(plan: Plan, video_list: VideoList) -> VideoList:
    """The videos of a store that holds some of a list, or of other ones as many."""
    ids = {*plan.videos.ids}
    is_known = ids <= {video.id for video in video_list.videos}
    return video_list.only(ids) if is_known else video_list.first(len(ids))


def repair_store(
    repair: Repair,
    video_list: VideoList,
    encoder: EncoderFiles,
    settings: ExtractSettings,
    on_progress: OnProgress = lambda progress: None,
) -> Summary:
    """Remove what is damaged and extract it again; everything else stays as it is.

    Raises RefusedError, before anything is removed, if the list or the encoder is another.
    """
    settings = settings_of(repair.plan, settings)
    encoder = encoder.hashed_like(repair.plan.identity.encoder)
    video_list = known_to(repair.plan, _those_of(repair.plan, video_list))
    asked, _ = make_plan(video_list, encoder, settings)
    check_same(repair.path, repair.plan, asked)
    choose_device(settings.device)
    repair.begin()
    return extract(video_list, repair.path, encoder, settings, on_progress)
