"""The videos of a survey -> which cannot be read, and which changed since their extraction."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from cache.store import Store
from pipeline.datasets.survey import Reading, Survey
from pipeline.datasets.tree import Place
from pipeline.resources import usable_cores
from pipeline.video.frames import check_beginning_of
from pipeline.video.images import BadVideoError
from pipeline.video.isolated import Decoder

SECONDS_MAX = 600.0  # to decode one video, as in an extraction


def glance(survey: Survey) -> dict[str, Reading]:
    """What size and first bytes show of every listed video file that was found.

    Of a folder, those of the image whose name comes first; nothing is decoded.
    """
    return {i: _glance(place) for i, place in _places(survey).items()}


def read_whole(
    survey: Survey, on_video: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Reading]:
    """Decode every listed video that was found, with all its frames, as an extraction does.

    ``on_video`` gets how many are done, and how many there are.
    """
    places = _places(survey)
    workers, idle = usable_cores(), SimpleQueue[Decoder]()

    def read(place: Place) -> Reading:
        decoder = idle.get()
        try:
            return _read(place, decoder)
        finally:
            idle.put(decoder)

    readings = {}
    with ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            idle.put(stack.enter_context(Decoder()))
        for video_id, reading in zip(places, pool.map(read, places.values()), strict=True):
            readings[video_id] = reading
            on_video(len(readings), len(places))
    return readings


def changed_since(survey: Survey, store: Store, readings: Mapping[str, Reading]) -> dict[str, str]:
    """List or video id -> how it differs from what a store of the set was extracted from.

    Numbers of frames are compared where both are known, bytes where ``readings`` have them.
    """
    known = {file.name: file.sha256 for file in store.plan.lists or ()}
    here = dict(survey.list_digests())
    changed = {name: "other bytes" for name in known if here.get(name, known[name]) != known[name]}
    frames = survey.frame_counts(readings)
    for row in store.load_rows(0):
        reading, count = readings.get(row.id), frames.get(row.id)
        if reading is None or row.status != "ok":
            continue
        if count not in (None, row.frames):
            changed[row.id] = f"{count} frames, {row.frames} in the store"
        elif reading.fault:
            changed[row.id] = f"{reading.fault}; it was read for the store"
        elif reading.sha256 and row.sha256 not in ("", reading.sha256):
            changed[row.id] = "other bytes than in the store"
    return changed


def _places(survey: Survey) -> dict[str, Place]:
    places = survey.found.places
    return {video_id: places[video_id] for video_id in survey.labels if video_id in places}


def _glance(place: Place) -> Reading:
    images = place.images
    try:
        check_beginning_of(place.first, bool(images))
    except BadVideoError as error:
        return Reading(f"{images.first}: {error}" if images else str(error))
    return Reading()


def _read(place: Place, decoder: Decoder) -> Reading:
    def choose(count: int) -> range:
        return range(count if place.images else 0)  # of a file, all are decoded anyway

    try:
        found = decoder.read_frames(place.path, choose, lambda index, frame: None, SECONDS_MAX)
    except BadVideoError as error:
        return Reading(str(error))
    return Reading("", found.frames, found.sha256)
