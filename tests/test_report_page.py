"""The report as a reader sees it, in the system's Chromium."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from browsers import open_browser
from playwright.sync_api import Browser, BrowserContext, Locator, Page
from predictions import make_prediction
from reports import COUNTS, NAMES, make_bird_prediction, write_photos

from inat.core.files import read_json
from inat.evaluation import Evaluation, evaluate, write_report


@dataclass
class Opened:
    """A page, and what it complained of or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    folder = tmp_path_factory.mktemp("report")
    root = folder / "data"
    first = make_bird_prediction(folder / "ce")
    second = make_bird_prediction(folder / "la", seed=1, strength=1.6)
    write_photos(root, first)
    return [evaluate(first), evaluate(second)]


@pytest.fixture(scope="module")
def path(evaluations: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = evaluations[0].prediction.parent / "data"
    return write_report(evaluations, tmp_path_factory.mktemp("page") / "report.html", root=root)


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """All pages of one context have one process, which compiles the charts' code once."""
    return browser.new_context()


def open_page(
    context: BrowserContext, path: Path, width: int = 1280, scheme: str = "light"
) -> Opened:
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    opened = Opened(page)
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on(
        "request",
        lambda r: None if r.url.startswith("data:image/jpeg") else opened.requests.append(r.url),
    )
    page.goto(path.as_uri())
    return opened


@pytest.fixture(scope="module")
def seen(context: BrowserContext, path: Path) -> Iterator[Opened]:
    opened = open_page(context, path)
    yield opened
    opened.page.close()


@pytest.fixture
def still(seen: Opened, path: Path) -> Iterator[Page]:
    """One page for all tests that look, and press nothing."""
    yield seen.page
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()]


@pytest.fixture
def page(context: BrowserContext, path: Path) -> Iterator[Page]:
    """A page of the test's own, to be used."""
    opened = open_page(context, path)
    yield opened.page
    opened.page.close()
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]


def texts(found: Locator) -> list[str]:
    return [text.strip() for text in found.all_inner_texts()]


def species_shown(page: Page) -> list[str]:
    return texts(page.locator("#species-table tbody th"))


def head(page: Page, name: str) -> Locator:
    return page.locator("#species-table thead button", has_text=name)


def column(page: Page, name: str) -> list[str]:
    names = texts(page.locator("#species-table thead th button"))
    return texts(page.locator(f"#species-table tbody tr > :nth-child({names.index(name) + 1})"))


def per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def test_the_page_draws_all_charts_and_asks_for_nothing(still: Page) -> None:
    for chart in ("counts", "bands", "reliability", "tree"):
        canvas = still.locator(f"#{chart}-chart canvas")
        assert canvas.count() == 1
        colours = canvas.evaluate(
            "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, "
            "c.height).data.buffer)).size"
        )
        assert colours > 20


def test_names_that_mean_harm_are_text(still: Page) -> None:
    assert still.evaluate("window.broken") is None
    assert sorted(species_shown(still)) == sorted(NAMES)
    assert still.locator("img[src='x'], #species b").count() == 0
    box = still.locator("#counts-chart canvas").bounding_box()
    assert box is not None
    for x in range(10, 100, 3):  # over the dots, so that tooltips are made
        still.mouse.move(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * 0.12)
    assert still.evaluate("window.broken") is None


def test_the_figures_equal_metrics_json(
    still: Page, evaluations: list[Evaluation], tmp_path: Path
) -> None:
    for run, evaluation in enumerate(evaluations):
        evaluation.save(tmp_path)
        metrics = read_json(tmp_path / "metrics.json")
        expected = {"top1": metrics["top1"], "mean_class_accuracy": metrics["mean_class_accuracy"]}
        expected |= {f"bands.{band}": found for band, found in metrics["bands"].items()}
        for measure, interval in expected.items():
            cell = still.locator(f'[data-run="{run}"][data-measure="{measure}"]')
            assert cell.locator("b").inner_text() == per_cent(interval["value"])
            ends = f"{per_cent(interval['low'])}–{per_cent(interval['high'])}"
            assert cell.locator("small").inner_text() == ends
        error = still.locator(f'[data-run="{run}"][data-measure="top3_error"] b')
        assert error.inner_text() == per_cent(metrics["top3_error"])
        row = still.locator("#further tbody tr", has_text="Macro F1")
        assert row.locator("td").nth(run).inner_text() == per_cent(metrics["means"]["macro_f1"])


def test_the_table_of_species_equals_metrics_json(
    still: Page, evaluations: list[Evaluation], tmp_path: Path
) -> None:
    evaluations[0].save(tmp_path)
    species = read_json(tmp_path / "metrics.json")["species"]
    rarest_first = np.argsort(COUNTS)
    titles = texts(still.locator(".legend li"))

    def expected(name: str) -> list[str]:
        return [per_cent(species[name][i]) for i in rarest_first]

    assert species_shown(still) == [NAMES[i] for i in rarest_first]
    assert column(still, f"{titles[0]}, %") == expected("accuracy")
    assert column(still, "F1, %") == expected("f1")
    assert column(still, "Guessed") == [str(species["predicted"][i]) for i in rarest_first]
    assert column(still, "95 % interval") == [
        f"{low}–{high}" for low, high in zip(expected("low"), expected("high"), strict=True)
    ]


def test_sorting_orders_by_the_column_and_says_so(page: Page) -> None:
    counts = page.locator("#species-table th[aria-sort]")
    assert (counts.inner_text(), counts.get_attribute("aria-sort")) == (
        "Training photos", "ascending"
    )  # fmt: skip
    head(page, "Training photos").click()
    assert counts.get_attribute("aria-sort") == "descending"
    assert column(page, "Training photos") == ["300", "120", "60", "20", "9", "2"]
    head(page, "Species").focus()
    page.keyboard.press("Enter")
    expected = page.evaluate("names => names.sort(new Intl.Collator().compare)", NAMES)
    assert species_shown(page) == expected
    assert counts.inner_text() == "Species"
    head(page, "Band").click()
    assert column(page, "Band") == ["few", "few", "medium", "medium", "many", "many"]


def test_filters_keep_the_species_that_match_all_words_and_the_band(page: Page) -> None:
    page.fill("#filter", "LARUS")  # a genus of two, whatever the case
    assert sorted(species_shown(page)) == sorted([NAMES[0], NAMES[2]])
    assert page.locator("#species-count").inner_text() == "2 of 6 species"
    page.fill("#filter", "larus 鷹")
    assert species_shown(page) == [NAMES[2]]
    page.fill("#filter", "")
    page.select_option("#filter-band", "few")
    assert species_shown(page) == [NAMES[5], NAMES[4]]
    page.fill("#filter", "larus")
    assert species_shown(page) == []
    assert page.locator("#species-count").inner_text() == "0 of 6 species"


def test_the_tree_is_walked_by_buttons_alone(page: Page, evaluations: list[Evaluation]) -> None:
    groups = page.locator("#tree-table tbody th")
    # Chordata and Basidia are the only phyla of their kingdoms, and stand for them.
    assert texts(groups) == ["Chordata", "Basidia & Co"]
    table = evaluations[0].per_class
    accuracies = [table["accuracy"][:4].mean(), table["accuracy"][4:].mean()]
    assert texts(page.locator("#tree-table td:last-child")) == [per_cent(a) for a in accuracies]
    page.get_by_role("button", name="Chordata").press("Enter")
    assert sorted(texts(groups)) == ["Aquila", "Larus", "Parus"]
    page.locator("#tree-table button", has_text="Larus").click()
    assert sorted(texts(groups)) == sorted([NAMES[0], NAMES[2]])
    assert texts(page.locator("#tree-path > *:not(span)")) == ["All species", "Chordata", "Larus"]
    page.locator("#tree-path button", has_text="All species").click()
    assert texts(groups) == ["Chordata", "Basidia & Co"]


def test_an_arc_leads_into_its_group_and_the_middle_back(page: Page) -> None:
    chart = page.locator("#tree-chart")
    box = chart.bounding_box()
    assert box is not None
    chart.click(position={"x": box["width"] / 2 + 0.15 * box["width"], "y": box["height"] / 2})
    assert page.locator("#tree-path b").inner_text() == "Chordata"
    chart.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert page.locator("#tree-path b").inner_text() == "All species"


def test_choosing_a_run_changes_what_stands_below(
    page: Page, evaluations: list[Evaluation]
) -> None:
    page.select_option("#run", "1")
    rarest_first = np.argsort(COUNTS)
    f1 = evaluations[1].per_class["f1"]
    assert column(page, "F1, %") == [per_cent(f1[i]) for i in rarest_first]
    assert [part.is_visible() for part in page.locator("#mistakes > div").all()] == [False, True]
    assert page.locator("#pairs article:visible").count() == min(
        12, len(evaluations[1].confused_pairs)
    )


def test_the_reliability_table_follows_the_band(page: Page, evaluations: list[Evaluation]) -> None:
    page.select_option("#reliability-band", "few")
    page.locator("#reliability summary").click()
    shown = [found.reliability["few"] for found in evaluations]
    assert texts(page.locator("#reliability-table td:nth-child(3)")) == [
        per_cent(each.accuracy) for own in shown if own for each in own.bins if each.n
    ]


def test_photos_are_decoded_and_have_alternatives(still: Page) -> None:
    images = still.locator("img").evaluate_all("all => all.map(i => [i.naturalWidth, i.alt])")
    assert images
    assert {width for width, _ in images} == {160}
    assert all(alt.startswith(tuple(NAMES)) for _, alt in images)


def test_the_theme_is_the_system_s_until_it_is_chosen(context: BrowserContext, path: Path) -> None:
    page = open_page(context, path, scheme="dark").page

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = background()
    page.locator("#theme").click()
    assert background() == "rgb(255, 255, 255)" != dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"
    page.locator("#theme").click()
    assert background() == dark
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert background() == "rgb(255, 255, 255)"  # paper is white
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert background() == dark
    page.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_is_no_wider_than_its_window(
    context: BrowserContext, path: Path, width: int
) -> None:
    page = open_page(context, path, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".headline").evaluate("t => t.scrollWidth <= t.parentNode.clientWidth")
    page.close()


def test_controls_have_names_and_charts_have_words(still: Page) -> None:
    unnamed = still.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter(e => "
        "!(e.innerText || e.labels?.length || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert all(still.locator(".chart").evaluate_all("all => all.map(c => c.ariaLabel)"))
    levels = still.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => h.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1


def test_thousands_of_species_are_paged(context: BrowserContext, tmp_path: Path) -> None:
    n, photos = 8142, 120
    labels = (np.arange(photos) * 67 % n).tolist()
    logits = np.random.default_rng(0).normal(0, 1, (photos, n)).astype(np.float32)
    counts = np.random.default_rng(1).permutation(np.arange(n) % 1000 + 1)
    columns = {
        "kingdom": [f"Kingdom{i % 3}" for i in range(n)],
        "genus": [f"Genus{i // 2}" for i in range(n)],
    }
    prediction = make_prediction(tmp_path / "p", logits, labels, counts.tolist(), columns=columns)
    path = write_report([evaluate(prediction)], tmp_path / "report.html")
    assert path.stat().st_size < 25_000_000
    opened = open_page(context, path)
    page = opened.page
    assert len(species_shown(page)) == 25
    assert page.locator("#page").inner_text() == "page 1 of 326"
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert page.locator("#page").inner_text() == "page 2 of 326"
    expected = sorted(range(n), key=lambda i: (counts[i], i))[25:50]
    assert species_shown(page) == [f"Genus{i} species{i}" for i in expected]
    page.fill("#filter", "genus4071")
    assert page.locator("#page").inner_text() == "page 1 of 1"
    head(page, "Accuracy, %").click()
    assert opened.complaints == []
    page.close()
