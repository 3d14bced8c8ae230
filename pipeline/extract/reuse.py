"""A finished store + another list -> the blocks of the new store that it already holds."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cache.errors import RefusedError
from cache.identity import differences, side_by_side
from cache.plan import Plan, Unit, VideoStatus
from cache.store import Store
from cache.writer import StoreWriter
from pipeline.datasets.videos import Video
from pipeline.encoders.clip import EncoderFiles
from pipeline.video.frames import source_sha256
from pipeline.video.images import BadVideoError


def refuse_other(source: Store, plan: Plan, encoder: EncoderFiles) -> None:
    """Refuse to reuse a store of another encoder or other settings; its videos may differ."""
    known = encoder.hashed_like(source.identity.encoder).identity
    known = known.model_copy(update={"text_sha256": plan.identity.encoder.text_sha256})
    update = {"videos": source.identity.videos, "encoder": known}
    asked = plan.identity.model_copy(update=update)
    rows = differences(source.identity, asked)
    if rows:
        raise RefusedError(
            f"--reuse {source.path} was made from something else:\n{side_by_side(rows)}\n"
            "reuse another store, or none"
        )


def reuse_features(
    writer: StoreWriter, source: Store, videos: Sequence[Video], shard: tuple[int, int]
) -> int:
    """Commit the blocks whose videos are all in ``source``, unchanged; returns how many videos."""
    plan, reused = writer.plan, set[int]()
    units = [unit for unit in writer.todo(shard) if unit.views[0] < source.views]
    rows = _same_places(source, plan, videos)
    sha256 = _hash_sources(videos, [row for u in units for row in _rows(u) if row in rows])
    for view in range(min(plan.views, source.views)):
        wanted = [replace(unit, views=(view,)) for unit in units if view in unit.views]
        if not wanted:
            continue
        features, index = source.load_features([view]), source.load_frame_index([view])
        status = source.load_rows(view)
        for unit in wanted:
            if all(
                row in rows and _holds(status[rows[row]], videos[row], sha256[row])
                for row in _rows(unit)
            ):
                at = [rows[row] for row in _rows(unit)]
                with writer.claim(unit) as mine:
                    if mine:
                        writer.commit(unit, features[at], index[at], [status[row] for row in at])
                        reused.update(_rows(unit))
    return len(reused)


def _rows(unit: Unit) -> range:
    return range(unit.start, unit.stop)


def _same_places(source: Store, plan: Plan, videos: Sequence[Video]) -> dict[int, int]:
    """Row here -> row in ``source`` of the same video, at the same position of a batch."""
    # The exact bits of a feature depend on its position.
    assert plan.identity.batch_frames is not None
    videos_of_batch = plan.identity.batch_frames // plan.frames
    known = {video: row for row, video in enumerate(source.ids)}
    return {
        row: known[video.id]
        for row, video in enumerate(videos)
        if video.id in known
        and (row % plan.block_videos - known[video.id] % source.plan.block_videos) % videos_of_batch
        == 0
    }


def _hash_sources(videos: Sequence[Video], rows: Iterable[int]) -> dict[int, str]:
    """Row -> present sha256 of the video's bytes, empty if they cannot be read."""

    def hashed(row: int) -> tuple[int, str]:
        try:
            return row, source_sha256(videos[row].path)
        except (OSError, BadVideoError):
            return row, ""

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(hashed, rows))


def _holds(status: VideoStatus, video: Video, sha256: str) -> bool:
    described = status.frames if video.frame_labels is None else len(video.frame_labels)
    return status.status == "ok" and status.sha256 == sha256 and status.frames == described
