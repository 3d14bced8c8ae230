"""The page of a report, as a file and in a browser."""

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tgdfer
from pipeline.config import MethodConfig, Run, runs_of
from pipeline.demo.faces import FacesSpec, read_faces, write_faces
from pipeline.evaluate.statistics import holm
from pipeline.report.ablation import header_of, methods_to_tune
from pipeline.report.contents import (
    Asked,
    ask_for_found,
    draw_tables,
    fill,
    find_leading,
    found_runs,
)
from pipeline.report.page import About, _section, render
from pipeline.report.tables import TABLE1, vary
from pipeline.train.rates import tried_factors
from pipeline.train.records import Records
from pipeline.train.split import scored_rows
from support.commands import ROOT
from support.commands import tgdfer as command
from support.records import write_record
from support.stores import write_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VARY = "optimiser.lr=[0.1,0.2,0.3]"
HINT = "own => getComputedStyle(own, '::before').content"
HOSTILE = "</script><img src=x onerror=alert(1)>"


def write_runs(records: Records, folds: list[str], rights: tuple[float, ...]) -> None:
    """Runs of the rows of a varied table, of which a share of answers is right."""
    generator = np.random.default_rng(0)
    store = records.store
    for row, right in zip(vary([VARY]).rows, rights, strict=False):
        for run in runs_of(row.method(MethodConfig()), folds, range(1)):
            labels = store.labels[scored_rows(store, run.fold, run.method.selection, run.seed)]
            wrong = generator.random(len(labels)) >= right
            frames = generator.standard_normal((len(labels), store.frames, len(store.classes)))
            frames[np.arange(len(labels)), :, (labels + wrong) % len(store.classes)] += 2
            logits = frames.mean(1)
            write_record(records, run, logits.argmax(1), logits_NK=logits, frame_logits_NTK=frames)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three settings, with frames of rendered faces."""
    here = tmp_path_factory.mktemp("page")
    write_faces(here / "faces", FacesSpec(videos=14), workers=1)
    videos = read_faces(here / "faces")
    store = tgdfer.extract(videos, here / "s.zarr", views=1, device="cpu")
    write_runs(Records(here / "runs", store), [own.name for own in videos.folds], (0.2, 0.4, 0.6))
    options = ["--store", "s.zarr", "--root", "faces", "--device", "cpu"]
    done = command("report", *options, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "written: reports/index.html, with 9 figures in reports/figures" in done.stdout
    return here / "reports" / "index.html"


def test_page_names_nothing_outside_it_and_only_its_own_script_may_run(page_file: Path) -> None:
    text = page_file.read_text()
    assert {own.partition(":")[0] for own in re.findall(r'src="([^"]*)', text)} == {"data"}
    assert all(own.startswith("#") for own in re.findall(r'href="([^"]*)', text))
    assert not re.search(r"url\(\s*[^$\s]", text)
    assert "default-src 'none'" in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    names = {path.name for path in (page_file.parent / "figures").iterdir()}
    assert {"forest-settings.svg", "influence.png", "contact-sheet.svg"} <= names
    assert len(names) == 18


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    store = write_store(
        tmp_path / "s.zarr",
        np.ones((8, 1, 4, 8)),
        np.arange(8) % 2,
        classes=(HOSTILE, "a\u202eb"),
        folds=2,
        name=f"<b>{HOSTILE}",
    )
    records = Records(tmp_path / "runs", store)
    write_runs(records, ["1", "2"], (0.5, 0.9))
    asked = ask_for_found(found_runs(records)[0], ["1", "2"])
    tables = fill(asked, records)
    header = header_of(store, asked.base, 2, 1)
    about = About(header, {"settings": "", "report": HOSTILE}, [HOSTILE])
    leading = find_leading(tables, store)
    text = render(tables, leading, draw_tables(tables, header), {0: b""}, store, about)
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert "\u202e" not in text
    assert "\\u003c/script\\u003e\\u003cimg" in text  # in the data of the browser
    assert text.count("</script>") == 3


def test_a_killed_grid_gives_a_page_that_says_what_is_missing_and_the_same_twice(
    tmp_path: Path,
) -> None:
    store = write_store(tmp_path / "s.zarr", np.ones((12, 1, 4, 8)), np.arange(12) % 3, folds=2)
    records = Records(tmp_path / "runs", store)
    write_runs(records, ["1", "2"], (0.5, 0.9))
    method = vary([VARY]).rows[1].method(MethodConfig())
    (records.folder(Run(method=method, fold="1", seed=0)) / "result.json").unlink()
    damaged = records.folder(Run(method=method, fold="2", seed=0)) / "predictions.csv"
    damaged.write_text("id\n")
    words = ["report", "--vary", VARY, "--store", "s.zarr", "--device", "cpu"]
    old = tmp_path / "reports" / "figures" / "forest-table3.svg"
    old.parent.mkdir(parents=True)
    old.write_text("of another page")
    pages = []
    for _ in range(2):
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 3, done.stderr  # one is damaged
        assert "No answer yet: 2 of 3 rows lack runs." in done.stdout
        assert "The page shows no frames: the store does not say" in done.stdout
        assert "left as found in reports/figures: forest-table3.svg\n" in done.stdout
        pages.append((tmp_path / "reports" / "index.html").read_bytes())
    assert pages[0] == pages[1]
    assert old.read_text() == "of another page"
    text = pages[0].decode()
    assert "What is missing" in text
    for line in (
        "2: 0 of 2, 1 damaged runs <small>fold 1, seed 0; fold 2, seed 0 (damaged)",
        "3: 0 of 2 runs <small>fold 1, seed 0; fold 2, seed 0",
        "main setting: compared with <small>fold 1, seed 0; fold 2, seed 0",
    ):
        assert f"<li>{line}</small></li>" in text
    remedy = "tgdfer ablate --vary &#39;optimiser.lr=[0.1,0.2,0.3]&#39; --store s.zarr"
    assert f"nothing again: <code>{remedy}</code>" in text


def test_every_difference_has_its_tests_and_every_rule_its_optimism(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", np.ones((40, 1, 4, 8)), np.arange(40) % 3, folds=2)
    records = Records(tmp_path / "runs", store)
    write_runs(records, ["1", "2"], (0.4, 0.7, 0.9))
    asked = ask_for_found(found_runs(records)[0], ["1", "2"])
    (own,) = fill(asked, records)
    section = _section(own, "")
    rows = {line.row.name: line for line in own.rows}
    wanted = [rows[name].differences[metric] for name in "23" for metric in ("UAR", "WAR")]
    known = [found for found in wanted if found is not None]
    corrected = holm([found.p for found in known])
    for line, found, p in zip(section.tests.rows, known, corrected, strict=True):
        assert [cell.order for cell in line[3:6]] == [found.value, found.p, p]
        assert line[7].text == f"{100 * found.detectable:.1f}"
    assert [line[6].order for line in section.tests.rows] == [
        "",
        rows["2"].mcnemar,
        "",
        rows["3"].mcnemar,
    ]
    assert [line[0].text for line in section.rules.rows] == [
        "last",
        "best_on_val",
        "best_on_test (optimistic)",
    ]
    place = section.grid.columns.index("beside the best")
    assert section.grid.rows[2][place].text == "* leads"
    assert {line[place].text for line in section.grid.rows[:2]} <= {"≈ not separable", "worse"}
    place = section.grid.columns.index("ECE %")
    assert section.grid.rows[1][place].text == f"{100 * own.ece['2']:.1f}"


def test_a_tuned_table_that_is_not_begun_says_what_is_missing(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", np.ones((12, 1, 4, 8)), np.arange(12) % 3, folds=2)
    records, base, folds = Records(tmp_path / "runs", store), MethodConfig(), ["1", "2"]
    mlp = next(row for row in TABLE1.rows if row.name == "MLP")
    table = replace(TABLE1, rows=(mlp,), main=mlp)
    tried = tried_factors(methods_to_tune([table], base), folds, [0], records)
    asked = Asked([table], base, folds, range(1), tried.factors, tried.lacking)
    about = About(
        header_of(store, base, 2, 1), {"table1": "tgdfer ablate table1", "report": ""}, []
    )
    text = render(fill(asked, records), None, [], {}, store, about)
    lacking = "learning rates not tried: 0.1, 0.3, 1, 3, 10 times the base&#39;s"
    assert f"<li>MLP: 0 of 2 runs <small>fold 1, {lacking}; fold 2, {lacking}</small></li>" in text
    assert "nothing again: <code>tgdfer ablate table1</code>" in text


def test_scores_that_were_selected_on_the_test_videos_are_called_optimistic(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", np.ones((12, 1, 4, 8)), np.arange(12) % 3, folds=2)
    options = ["--store", "s.zarr", "--device", "cpu", "--set", "selection.rule=best_on_test"]
    done = command("report", "table3", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "reports" / "index.html").read_text()
    assert "<strong>Optimistic:</strong> all scores are those of the best epoch on the test" in text
    assert "All of them are optimistic." in text
    assert "12 rows lack runs" in text


@contextmanager
def opened(chromium: "Browser", file: Path, width: int = 1000, **options: Any) -> "Iterator[Page]":
    """The page in a browser, where it must not complain and ask nobody for anything."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, **options)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url[:80]) if is_away(asked.url) else None)
    page.goto(file.as_uri())
    yield page
    page.close()
    assert said == []


def is_away(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def overflows(page: "Page") -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_page_is_accessible_and_as_wide_as_the_screen(
    chromium: "Browser", page_file: Path, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(chromium, page_file, width, color_scheme=scheme) as page:
        assert not overflows(page)
        page.evaluate("document.querySelector('details').open = true")
        found = Axe().run(page)
        assert found.response["violations"] == []
        assert len(found.response["passes"]) > 20


@pytest.mark.slow
def test_table_and_browser_are_used_with_the_keyboard_alone(
    chromium: "Browser", page_file: Path
) -> None:
    with opened(chromium, page_file) as page:
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the answer"
        head = page.locator("#table-settings thead th", has_text="WAR %").first
        tab_to(page, "#table-settings thead button >> text=WAR %")
        order = []
        for direction in ("descending", "ascending"):
            page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == direction
            order.append(page.locator("#table-settings td:nth-child(4)").all_inner_texts())
        assert order[0] == order[1][::-1] == sorted(order[0], key=war_of, reverse=True)
        assert len({*map(war_of, order[0])}) == 3
        tab_to(page, "#search")
        errors = page.locator("#list [role=option] small").all_inner_texts()
        for sought in (errors[-1].replace(" taken for ", ">"), errors[-1].upper()):
            page.keyboard.type(sought)
            shown = page.locator("#list [role=option] small").all_inner_texts()
            assert shown == errors.count(errors[-1]) * [errors[-1]]
            page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.locator("#show").select_option("all")
        tab_to(page, "#list")
        names = page.locator("#list [role=option]").all_inner_texts()
        for key, place in (("ArrowDown", 1), ("End", len(names) - 1), ("ArrowUp", len(names) - 2)):
            page.keyboard.press(key)
            chosen = page.locator("#list [aria-selected=true]")
            assert chosen.all_inner_texts() == [names[place]]
            assert page.locator("#list").get_attribute("aria-activedescendant") == (
                chosen.get_attribute("id")
            )
            assert page.locator("#detail h3").inner_text() == names[place].split()[0]
        assert page.locator("#detail .frame").count() == 16
        background = page.locator("#detail .picture").first.get_attribute("style")
        assert background is not None
        assert "data:image/jpeg;base64," in background


def war_of(cell: str) -> float:
    return float(cell.split()[0])


def tab_to(page: "Page", selector: str) -> None:
    """Press Tab until that element has the focus."""
    wanted = page.locator(selector).first.element_handle()
    for _ in range(60):
        if page.evaluate("wanted => document.activeElement === wanted", wanted):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not reach {selector}")


@pytest.mark.slow
def test_on_a_phone_headings_are_not_hidden_and_wide_tables_say_that_they_scroll(
    chromium: "Browser", page_file: Path
) -> None:
    with opened(chromium, page_file, 390) as page:
        for name in ("tables", "figures", "videos", "provenance"):
            page.locator(f"nav a[href='#{name}']").click()
            top = page.locator(f"#{name}-title").bounding_box()
            header = page.locator("header").bounding_box()
            assert top is not None
            assert header is not None
            assert top["y"] >= header["height"]
        assert page.locator("#tables .wide").first.evaluate(HINT) != "none"
    with opened(chromium, page_file, 2400) as page:
        assert page.locator("#tables .wide").nth(1).evaluate(HINT) == "none"


@pytest.mark.slow
def test_page_prints_and_its_figures_are_there_without_a_script(
    chromium: "Browser", page_file: Path
) -> None:
    with opened(chromium, page_file, 700, java_script_enabled=False) as page:
        page.emulate_media(media="print")
        assert not page.locator("#videos").is_visible()
        assert page.locator("#table-settings tbody tr").count() == 3
        widths = page.locator("figure img").evaluate_all("all => all.map(own => own.naturalWidth)")
        assert len(widths) == 9
        assert min(widths) > 200
        assert not overflows(page)
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_main_job_ends_with_the_page_of_its_own_table() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nablation-table:")[2].partition("\n\n")[0]
    *_, ablate, report = recipe.splitlines()
    assert ablate.replace("ablate", "report") == report
