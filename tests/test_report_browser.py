"""The page of a result in headless Chromium: narrow and wide, light and dark, by keyboard alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .report_files import write_hostile, write_page, write_results

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser test needs playwright: pip install .[browser]"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="the browser test needs axe: .[browser]"
)

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES = ("full", "hostile", "refused", "staged")
VIEWS = [
    *(("full", width, scheme) for width in (360, 1280) for scheme in ("light", "dark")),
    *((name, *view) for name in PAGES[1:] for view in ((360, "light"), (1280, "dark"))),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_results(folder)
    write_hostile(folder / "w.safetensors")
    content = bytearray((folder / "certificate.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "changed.safetensors").write_bytes(content)
    given = {
        "full": ("pruned.safetensors", "certificate.safetensors", "table.json"),
        "hostile": ("w.safetensors",),
        "refused": ("pruned.safetensors", "changed.safetensors"),
        "staged": ("staged.safetensors",),
    }
    for name in PAGES:
        write_page(folder / f"{name}.html", *(folder / file for file in given[name]))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium was found; install one, or name it in CHROMIUM")
    with playwright.sync_playwright() as driver:
        # --no-sandbox: continuous integration often runs as root in a container
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page that is open, and everything that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str, **options: Any) -> None:
        size = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def focused(self, script: str) -> Any:
        """Evaluate with ``e`` the element that has the focus."""
        return self.page.evaluate(f"(() => {{ const e = document.activeElement; {script} }})()")


@pytest.fixture
def visit(browser: Any, pages: Path) -> Iterator[Any]:
    opened: list[Visit] = []

    def open_page(name: str, width: int = 1280, scheme: str = "light", **options: Any) -> Visit:
        opened.append(Visit(browser, pages / f"{name}.html", width, scheme, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.mark.parametrize(("name", "width", "scheme"), VIEWS)
def test_it_reads_well_and_asks_for_nothing(visit: Any, name: str, width: int, scheme: str) -> None:
    seen = visit(name, width, scheme)
    wide = seen.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} px of content on {width} px"
    for details in seen.page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(seen.page)
    assert found.violations_count == 0, found.generate_report()
    assert seen.said == []
    own = [url for url in seen.asked if not url.startswith("data:")]
    assert own == [seen.page.url]


def test_headings_and_landmarks(visit: Any) -> None:
    page = visit("full").page
    heads = page.locator("h2").all_inner_texts()
    assert heads == ["Summary", "Proof", "Layers", "Incumbent and bound", "Masks", "Trade-offs",
                     "Trust in the quadratic model", "How to repeat it"]  # fmt: skip
    for role in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(target).get_by_role("heading", level=2).inner_text()
    drawn = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert drawn and all(drawn)


def test_everything_is_reached_by_keyboard(visit: Any) -> None:
    seen = visit("full", 360)
    wanted = seen.page.evaluate(
        "[...document.querySelectorAll('a, button, summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    reached = []
    for _ in range(wanted):
        seen.page.keyboard.press("Tab")
        style = seen.focused(
            "const s = getComputedStyle(e); return [s.outlineStyle, s.outlineWidth]"
        )
        assert style[0] != "none" and float(style[1].removesuffix("px")) >= 2
        assert seen.focused(
            "const b = e.getBoundingClientRect(); return b.right > 0 && b.width > 0"
        )
        reached.append(seen.focused("return e.outerHTML"))
    assert len(set(reached)) == wanted and "Skip to the content" in reached[0]


def test_the_skip_link_skips(visit: Any) -> None:
    seen = visit("full")
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Enter")
    assert seen.focused("return e.id") == "content"


def test_details_open_by_keyboard(visit: Any) -> None:
    seen = visit("full")
    summary = seen.page.locator("#bounds summary").first
    summary.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("#bounds details").first.get_attribute("open") is not None
    assert seen.page.locator("#bounds table").first.is_visible()


def test_tables_are_sorted_by_keyboard(visit: Any) -> None:
    page = visit("full").page
    kept = page.get_by_role("button", name="kept")
    column = page.locator("#layers tbody td:nth-child(4)")
    orders = []
    for direction in ("descending", "ascending"):
        kept.focus()
        page.keyboard.press("Enter")
        head = page.locator("#layers th", has=kept)
        assert head.get_attribute("aria-sort") == direction
        orders.append([int(text.replace(",", "")) for text in column.all_inner_texts()])
    assert orders[0] == sorted(orders[0], reverse=True) and orders[1] == orders[0][::-1]
    assert len(set(orders[0])) > 1


def test_it_needs_no_script(visit: Any) -> None:
    page = visit("full", java_script_enabled=False).page
    assert page.locator("h2").count() == 8 and page.get_by_role("button").count() == 0
    assert page.locator("#layers tbody tr").count() == 2


def test_names_run_nothing(visit: Any) -> None:
    seen = visit("hostile")
    assert seen.page.evaluate("document.scripts.length") == 1 and seen.said == []
    assert "<script>alert(1)</script>.weight" in seen.page.locator("#layers").inner_text()


def test_paper_shows_what_is_folded(visit: Any) -> None:
    page = visit("full").page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    height = "e => e.getBoundingClientRect().height"
    assert page.locator("#bounds details table").first.evaluate(height) > 20
