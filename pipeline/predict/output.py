"""Predictions, as they come -> a folder that the same command goes on filling.

A journal in the folder has a line for each video whose pictures are written, after one for what was
asked. Whatever ends the command, the next one finds there what is done. The tables come last, and
then the journal is removed, unless videos are left or failed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cache.errors import DamagedError, RefusedError
from cache.files import (
    append_record,
    canonical_json,
    locked_folder,
    make_directories,
    read_records,
    remove_file,
    sha256,
)
from cache.identity import FrozenModel, refused
from cache.local import LocalPath
from pipeline.evaluate.influence import Influence
from pipeline.predict.features import ReadSettings
from pipeline.predict.prediction import VideoPrediction, failed, unfinished
from pipeline.predict.predictor import Predictor, Row
from pipeline.predict.sources import Source
from pipeline.predict.written import (
    PredictionFile,
    pictures_of,
    write_overlay,
    write_predictions,
    write_strip,
    write_timeline,
)
from pipeline.video.frames import decoder_name, source_sha256
from pipeline.video.images import BadVideoError

JOURNAL = "predictions.journal"


class Done(FrozenModel):
    """A video that was predicted: its number among the sources, and its rows."""

    number: int = Field(ge=0)
    sha256: str
    rows: tuple[VideoPrediction, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for row in self.rows:
            if row.status != "ok" or row.label not in row.probabilities or not row.windows:
                raise ValueError("a video without a prediction")
        return self


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make the folder and keep other commands from predicting into it meanwhile.

    Raises RefusedError if another one does.
    """
    make_directories(out)
    with locked_folder(out) as got:
        if not got:
            raise RefusedError(
                f"{out}: another command is writing predictions there; wait until it has ended, or "
                "choose another --out"
            )
        yield


class Output:
    """A folder of predictions, which should be ``held``, and what an interrupted command left."""

    def __init__(
        self,
        out: Path,
        predictor: Predictor,
        sources: Sequence[Source],
        settings: ReadSettings,
        influence: Influence = "logit",
        overlay: bool = False,
    ) -> None:
        """Begin, or go on; ``done`` are the predictions of videos that are still the same.

        ``other`` says that the folder held those of another command, which are begun again. Raises
        DamagedError for a journal that is not ours.
        """
        self._out, self._predictor, self._sources = out, predictor, sources
        self._influence, self._overlay = influence, overlay
        make_directories(out)
        self._journal = LocalPath(out) / JOURNAL
        asked = {"asked": _asked(predictor, sources, settings, influence, overlay)}
        records = self._read()
        first = records[0] if records else None
        self.other = first not in (None, asked)
        if first != asked:
            remove_file(self._journal)
            append_record(self._journal, asked)
            records = [asked]
        with refused(f"{self._journal} is damaged", DamagedError, "remove it to begin again"):
            kept = [Done.model_validate_json(str(record.get("done"))) for record in records[1:]]
        self.done = {own.number: own.rows for own in kept if self._is_still(own)}

    def add(self, number: int, rows: Sequence[Row]) -> list[VideoPrediction]:
        """Write the pictures of a source and note that it is done; returns its rows.

        Of a video that cannot be read again they are failures.
        """
        videos = self._draw(number, rows)
        if all(video.status == "ok" for video in videos):
            done = Done(number=number, sha256=rows[0][1].sha256, rows=tuple(videos))
            # As text, which keeps the order of the classes.
            append_record(self._journal, {"done": done.model_dump_json()})
        return videos

    def finish(self, found: Mapping[int, Sequence[VideoPrediction]]) -> list[Path]:
        """Write the tables of what was found of each source, if of any; returns their paths.

        Those that nothing was found of are rows, too: unfinished ones. Pictures that the folder
        held before are removed once all is done.
        """
        if not found:
            return []
        is_whole = len(found) == len(self._sources)
        rows = [
            (number, video)
            for number, source in enumerate(self._sources)
            for video in found.get(number, [unfinished(source.name)])
        ]
        content = PredictionFile(
            networks=tuple(self._predictor.networks),
            classes=self._predictor.classes,
            influence=self._influence,
            features=self._predictor.data,
            videos=tuple(video for _, video in rows),
        )
        pictures = [self._pictures(*row) for row in rows if row[1].status == "ok"]
        written = write_predictions(
            self._out, content, set().union(*pictures) if is_whole else None
        )
        if is_whole and all(video.status == "ok" for _, video in rows):
            remove_file(self._journal)
        return written

    def _pictures(self, number: int, video: VideoPrediction) -> list[Path]:
        return pictures_of(self._out, number, video, self._overlay)

    def _draw(self, number: int, rows: Sequence[Row]) -> list[VideoPrediction]:
        videos = [video for video, _ in rows]
        good = [row for row in rows if row[0].status == "ok"]
        try:
            for row, shown in zip(good, self._predictor.pictures(good), strict=True):
                self._draw_row(number, row, shown)
        except BadVideoError as error:  # it was changed since, or removed
            return [v if v.status == "failed" else failed(v.name, str(error)) for v in videos]
        return videos

    def _draw_row(self, number: int, row: Row, shown: NDArray[np.uint8]) -> None:
        video, encoded = row
        write_strip(self._out, number, video, shown, self._influence)
        if len(video.windows) > 1:
            write_timeline(self._out, number, video)
        if self._overlay:
            write_overlay(self._out, number, video, encoded, self._influence)

    def _read(self) -> list[dict[str, Any]]:
        if not self._journal.is_file():
            return []
        try:
            return list(read_records(self._journal))
        except RefusedError as error:
            raise DamagedError(
                f"{self._journal} is damaged ({error}): remove it to begin again"
            ) from error

    def _is_still(self, done: Done) -> bool:
        """Whether the video is the same, and its pictures are there."""
        if done.number >= len(self._sources):
            return False
        path = self._sources[done.number].path
        try:
            same = (path.is_file() or path.is_dir()) and source_sha256(path) == done.sha256
        except (OSError, BadVideoError):
            return False
        pictures = [path for row in done.rows for path in self._pictures(done.number, row)]
        return same and all(picture.is_file() for picture in pictures)


def _asked(
    predictor: Predictor,
    sources: Sequence[Source],
    settings: ReadSettings,
    influence: Influence,
    overlay: bool,
) -> str:
    """The digest of all that decides about the predictions, except for the bytes of the videos."""
    encoder = predictor.encoder
    how = asdict(settings)
    del how["workers"], how["decode_seconds"]
    asked = {
        "networks": list(predictor.networks),
        "features": predictor.data.model_dump(mode="json"),
        "encoder": [encoder.device.type, encoder.precision, decoder_name()],
        "settings": how,
        "influence": influence,
        "overlay": overlay,
        "sources": [source.name for source in sources],
    }
    return sha256(canonical_json(asked))
