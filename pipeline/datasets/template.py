"""A folder of videos -> a list of them to fill in, and a file for the texts of their classes."""

import csv
import io
import os
import unicodedata
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.folders import LAYOUT
from pipeline.datasets.tree import find_videos, refuse_nested, scan
from pipeline.datasets.videos import natural_key

LIST, TEXTS = "list.csv", "texts.toml"
COLUMNS = ("path", "label", "subject", "split")
CONTROLS = {"Cc", "Zl", "Zp"}  # categories of signs: tabs, line breaks and the like
TEXTS_TEMPLATE = """\
# Texts of the classes, one table each, in the order of their numbers if the labels are numbers.
# Give this file to --texts; without it, a class is called by its name, and its sentence is
# "an expression of NAME". Classes such as happiness and anger have texts already.
#
# [boredom]
# name = "boredom"
# descriptors = "drooping eyelids, slack lips, a still face, a head resting on a hand"
"""


def write_templates(folder: Path) -> tuple[int, list[Path]]:
    """(videos, the files written): ``list.csv`` with their paths, and ``texts.toml``.

    Refuses to replace either, a folder of images that holds videos as well, and paths that a list
    cannot say.
    """
    tree = scan(folder)
    files = [folder / LIST, folder / TEXTS]
    for file in files:
        if os.path.lexists(file):
            raise RefusedError(f"{file} exists already; move it away to begin again")
    places = find_videos(tree, LAYOUT).places
    refuse_nested(places, folder)
    named = (place.path.relative_to(folder).as_posix() for place in places.values())
    paths = sorted(named, key=natural_key)
    for path in paths:
        if path != path.strip() or "\\" in path or CONTROLS & {*map(unicodedata.category, path)}:
            raise RefusedError(
                f"{folder}: {path!r} begins or ends with a space, or has a backslash, a tab or a "
                "line break, which a list cannot say: rename it"
            )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *([path, "", "", ""] for path in paths)])
    for file, content in zip(files, (text.getvalue(), TEXTS_TEMPLATE), strict=True):
        with file.open("x", encoding="utf-8") as opened:
            opened.write(content)
    return len(paths), files
