"""What an interrupted command leaves, and that the same command goes on from there."""

import os
import shutil
import signal
import time
import zlib
from pathlib import Path

import pytest

from cache.errors import DamagedError, RefusedError
from cache.files import append_record
from pipeline.predict.output import JOURNAL, Output, held
from pipeline.predict.prediction import failed
from pipeline.predict.predictor import Predictor
from pipeline.predict.sources import find_sources
from pipeline.predict.windows import Sliding
from pipeline.predict.written import PredictionFile
from support.commands import ROOT, tgdfer
from support.forked import forker
from support.sources import pictures, write_folder, write_video
from support.trained import Trained

pytestmark = pytest.mark.slow  # it renders and trains

# Hangs when it decodes a sleeper for the first time.
SLEEPY_DECODER = """
import os, time, av
sound = av.open
def opened(path, *arguments, **options):
    if "sleeper" in path and not os.path.exists(path + ".seen"):
        open(path + ".seen", "w").close()
        time.sleep(3600)
    return sound(path, *arguments, **options)
av.open = opened
"""


def test_signal_keeps_what_is_done_and_the_same_command_goes_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLEEPY_DECODER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    names = ["a.mp4", "sleeper.mp4", "b.mp4"]
    for seed, name in enumerate(names):
        write_video(tmp_path / name, pictures(20, seed=seed))
    options = ["--faces", "whole", "--device", "cpu", "--workers", "1"]
    words = ["predict", *names, "--run", str(trained.folders[0]), *options, "--out"]

    at_work = forker().start([*words, "out"], tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "sleeper.mp4.seen").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # until it waits for frames of the sleeper
    os.kill(at_work.pid, signal.SIGTERM)
    stopped = at_work.wait(60)
    assert stopped.code == 128 + signal.SIGTERM, stopped.stderr
    assert stopped.stderr.endswith(
        "stopped with 2 videos left. Run the same command again to go on.\n"
    )
    content = PredictionFile.model_validate_json((tmp_path / "out/predictions.json").read_bytes())
    assert [video.name for video in content.videos] == names
    assert [video.status for video in content.videos] == ["ok", "unfinished", "unfinished"]

    again = tgdfer(*words, "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "1 of 3 videos predicted before" in again.stderr
    assert tgdfer(*words, "whole", cwd=tmp_path).returncode == 0
    ours, theirs = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")}
        for out in (tmp_path / "out", tmp_path / "whole")
    )
    assert len(ours) == 2 + len(names)
    assert ours == theirs


def test_predictions_are_kept_while_nothing_changes_that_they_depend_on(
    ensemble: Predictor, tmp_path: Path
) -> None:
    paths = [write_folder(tmp_path / name, pictures(5, seed=n)) for n, name in enumerate("ab")]
    sources, settings = find_sources(paths), ensemble.settings(faces="whole")
    out = tmp_path / "out"

    def opened(sources: list = sources, **options: str) -> Output:  # type: ignore[type-arg]
        return Output(out, ensemble, sources, settings, **options)  # type: ignore[arg-type]

    output = opened()
    said = {n: tuple(output.add(n, rows)) for n, rows in ensemble.stream(sources, settings)}
    assert said.keys() == {0, 1}
    assert opened().done == said
    whole = (out / JOURNAL).read_bytes()
    first = int(whole.splitlines()[1].split(b'number\\":')[1][:1])  # that was done first

    (out / JOURNAL).write_bytes(whole[:-9])  # a kill
    assert opened().done == {first: said[first]}
    (out / JOURNAL).write_bytes(whole)
    strip = next((out / "strips").glob("0001-*"))
    strip.rename(out / "away")
    assert opened().done == {1: said[1]}
    (out / "away").rename(strip)
    (tmp_path / "b/0.jpg").write_bytes((tmp_path / "b/1.jpg").read_bytes())
    assert opened().done == {0: said[0]}
    shutil.rmtree(tmp_path / "b")
    assert opened().done == {0: said[0]}

    strips = sorted((out / "strips").iterdir())
    assert opened().finish({}) == []  # what was there stays
    opened().finish({0: said[0]})
    assert opened().done == {0: said[0]}  # one is left
    assert sorted((out / "strips").iterdir()) == strips
    opened().finish({0: said[0], 1: [failed("b", "no video")]})
    assert opened().done == {0: said[0]}  # the other is tried again
    other = opened(influence="margin")
    assert (other.other, other.done) == (True, {})
    assert (opened().other, opened().other) == (True, False)
    opened().finish(said)
    assert not (out / JOURNAL).exists()


def test_video_that_changes_before_its_pictures_are_drawn_is_a_failure(
    ensemble: Predictor, tmp_path: Path
) -> None:
    path = write_folder(tmp_path / "long", pictures(30))
    sources, settings = find_sources([path]), ensemble.settings(Sliding(0.8, 0.4), faces="whole")
    output = Output(tmp_path / "out", ensemble, sources, settings)
    ((number, rows),) = ensemble.stream(sources, settings)
    (path / "3.jpg").write_bytes((path / "4.jpg").read_bytes())
    (video,) = output.add(number, rows)
    assert (video.status, video.reason) == ("failed", "changed while it was read")
    assert output.finish({number: [video]})  # the tables say so, too


@pytest.mark.parametrize(
    "row", ['{"number": 0}', '{"number": 0, "sha256": "", "rows": [{"name": "a", "status": "ok"}]}']
)
def test_journal_that_is_not_ours_is_refused(ensemble: Predictor, tmp_path: Path, row: str) -> None:
    sources = find_sources([write_folder(tmp_path / "a", pictures(3))])
    settings = ensemble.settings(faces="whole")
    Output(tmp_path, ensemble, sources, settings)
    append_record(tmp_path / JOURNAL, {"done": row})
    with pytest.raises(DamagedError, match=r"predictions.journal is damaged .*: remove it to"):
        Output(tmp_path, ensemble, sources, settings)


def test_two_commands_never_write_to_one_folder(tmp_path: Path) -> None:
    with (
        held(tmp_path / "out"),
        pytest.raises(RefusedError, match="another command is writing predictions there"),
        held(tmp_path / "out"),
    ):
        pass
    with held(tmp_path / "out"):
        pass


def test_line_of_the_journal_that_holds_no_object_names_the_file(
    ensemble: Predictor, tmp_path: Path
) -> None:
    sources = find_sources([write_folder(tmp_path / "a", pictures(3))])
    (tmp_path / JOURNAL).write_bytes(b"%08x [1]\n" % zlib.crc32(b"[1]"))
    with pytest.raises(DamagedError, match=r"predictions.journal is damaged .*: remove it to"):
        Output(tmp_path, ensemble, sources, ensemble.settings(faces="whole"))
