"""The report in a real browser: it draws, reads well on a phone, says nothing in the console, asks for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from bottleneck.runs.run_folder import load_run
from cli.report.page import render
from tests.run_builder import Shape, build_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs the Debian packages chromium and chromium-driver",
    ),
]


class Browser:
    """Headless Chromium that records every request and every line of the console."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        # The sandbox needs user namespaces, which a container or root does not have; the page is our own.
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, path: Path, width: int = 1200, dark: bool = False, media: str = "") -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        self.driver.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent.trim())"
        found: list[str] = self.run(script, selector)
        return found

    def count(self, selector: str) -> int:
        return len(self.texts(selector))

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [item["params"] for item in messages if item["method"] == "Network.requestWillBeSent"]
        return [item["request"]["url"] for item in sent]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    whole = load_run(build_run(root))
    fast = load_run(build_run(root, identity="20261123T223000Z-tp2-beef", shape=Shape(prefill=1.4)))
    degraded = load_run(build_run(root, identity="20261123T220000Z-tp2-dead", degraded=True))
    evil = "<script>document.title='owned'</script><img src=https://example.invalid/x>"
    hostile = load_run(build_run(root, identity="20261123T230000Z-tp2-evil", note=evil))
    hostile = replace(hostile, deployment=evil)
    found = {}
    for name, runs in {"whole": [whole, fast], "degraded": [degraded], "hostile": [hostile]}.items():
        found[name] = root / f"{name}.html"
        found[name].write_text(render(runs), encoding="utf-8")
    return found


@pytest.mark.parametrize("name", ["whole", "degraded", "hostile"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_no_console_line_no_request_no_sideways_scroll(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.console(), browser.requests()
    browser.open(pages[name], width, dark)
    # Hover and keys are part of the page: they must be as quiet.
    browser.run("document.querySelector('.time .plot')?.dispatchEvent(new PointerEvent('pointermove', {clientX: 300}))")
    assert browser.console() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {pages[name].as_uri()}
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.driver.title != "owned"
    assert browser.count("img") == 0


def test_the_watch_itself_sees_requests_and_console_lines(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('reported')</script>")
    browser.console(), browser.requests()
    browser.open(bad)
    assert any("reported" in line for line in browser.console())
    assert "http://127.0.0.1:9/x.png" in browser.requests()


def test_verdict_ledger_and_charts_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"])
    assert browser.texts("h1") == ["Bandwidth of link direct"]
    assert "86 %" in browser.texts(".verdict .big")[0]
    assert browser.count("#ledger-table tbody tr") == 11
    widths = browser.run(
        "return [...document.querySelectorAll('.ledger-row:first-child .segment')]"
        ".map((each) => each.getBoundingClientRect().width)"
    )
    bar = browser.run("return document.querySelector('.ledger-row .bar').getBoundingClientRect().width")
    assert sum(widths) == pytest.approx(bar, rel=0.01)
    assert widths[0] / bar == pytest.approx(0.601, abs=0.01)
    ids = browser.run("return [...document.querySelectorAll('.time .chart')].map((each) => each.id)")
    assert ids == [
        "node-node0",
        "node-node1",
        "link-direct",
        "link-ethernet",
        "engine-node0-requests",
        "engine-node0-cache",
    ]
    boxes = browser.run(
        "return [...document.querySelectorAll('.plot path.line')].map((each) => each.getBoundingClientRect().width)"
    )
    assert min(boxes) > 100
    assert browser.count(".cdf") == 3
    assert browser.count("#comparison tbody tr") == 5


def test_hatched_unexplained_and_dark_colours(browser: Browser, pages: dict[str, Path]) -> None:
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    browser.open(pages["whole"])
    assert "repeating-linear-gradient" in browser.run(style, ".segment.tone-unexplained", "backgroundImage")
    light = browser.run(style, "body", "backgroundColor")
    browser.open(pages["whole"], dark=True)
    assert browser.run(style, "body", "backgroundColor") != light


def test_pointer_and_keys_read_all_charts_at_one_moment(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"])
    browser.run(
        "const plot = document.querySelector('#link-direct .plot'), box = plot.getBoundingClientRect();"
        "plot.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width * 0.1}))"
    )
    values = browser.texts("output[data-line]")
    assert all(values), values
    assert browser.texts("#link-direct output")[0].endswith("Mbit/s")
    assert browser.texts("#engine-node0-requests output") == ["4", "0"]
    before = browser.texts(".clock")
    browser.run(
        "document.querySelector('#node-node0 .plot')"
        ".dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', cancelable: true}))"
    )
    assert browser.texts(".clock") != before
    browser.run("document.querySelector('#link-direct .plot').dispatchEvent(new PointerEvent('pointerleave'))")
    assert not any(browser.texts("output[data-line]"))


def test_degraded_run_says_what_is_missing(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["degraded"])
    assert browser.texts("h1") == ["Inconclusive"]
    notes = " ".join(browser.texts("#notes li"))
    assert "ceilings.json: missing" in notes and "cluster probe" in notes
    assert browser.count("#node-node0 .gap") >= 1
    assert "No client timings" in browser.texts("#latency")[0]


def test_every_picture_has_words_and_headings_are_in_order(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"])
    unnamed = browser.run(
        "return [...document.querySelectorAll('[role=img]')].filter((each) => !each.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    levels = browser.run(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map((each) => Number(each.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_printed_page_keeps_its_colours(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"], dark=True, media="print")
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.run(style, ".segment", "printColorAdjust") == "exact"
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000
