"""The report as a browser shows it: nothing is requested, everything can be reached, read and printed.

The page is that of a hostile backend. Chromium is found by HARNESS_CHROMIUM or on the PATH, and spoken to by its
debugging protocol through two pipes.
"""

import base64
import fcntl
import json
import os
import re
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)
PATIENCE = 60
A4 = {"width": 703, "height": 1017}  # CSS pixels between the margins that the style sets


class Browser:
    """One tab of a Chromium; `events` are those since the page was opened."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        places = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(theirs, 3)]
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.pid = os.posix_spawn(program, command, os.environ, file_actions=[*places, *quiet], setpgroup=0)
        for fd in (theirs_in, theirs_out, *theirs):
            os.close(fd)
        self.reading, self.writing, self.rest = ours_in, ours_out, b""
        self.events: list[dict[str, Any]] = []
        self.number, self.session = 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def close(self) -> None:
        """Ends the program and waits for it."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reading)
        os.close(self.writing)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its result; events that come first are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.reading], [], [], PATIENCE)[0], "Chromium does not answer"
            piece = os.read(self.reading, 1 << 20)
            assert piece, "Chromium has ended"
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path) -> None:
        """Opens a page and waits until it is loaded."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    program = os.environ.get("HARNESS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium: install one, or name it in HARNESS_CHROMIUM")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def tab(chromium: Browser, judged_run: Path) -> Iterator[Browser]:
    """The report of the hostile run, just opened, on a light screen."""
    chromium.open(judged_run / "report.html")
    yield chromium
    chromium.call("Emulation.setEmulatedMedia", media="", features=[])
    chromium.call("Emulation.clearDeviceMetricsOverride")


def test_the_page_asks_for_nothing_and_reports_no_error(tab: Browser, judged_run: Path) -> None:
    """Only the file itself is requested; no error, no dialog, no script, also where a backend's name is a script."""
    told = {event["method"]: event for event in tab.events}
    asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [(judged_run / "report.html").as_uri()]
    logged = [e["params"]["entry"]["text"] for e in tab.events if e["method"] == "Log.entryAdded"]
    assert logged == []
    assert not told.keys() & {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"}
    assert tab.value("document.scripts.length") == 0
    assert "<script>alert(1)</script>" in tab.value("document.querySelector('#verdict').textContent")


def test_the_first_screen_has_the_verdict(tab: Browser) -> None:
    """Each backend's answer, and a gate that decides with its link, are on the screen before one scrolls."""
    tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    seen = ".filter(e => e.getBoundingClientRect().bottom <= innerHeight).map(e => e.textContent.trim())"
    assert tab.value(f"[...document.querySelectorAll('#verdict tbody .badge')]{seen}").count("does not ship") == 2
    assert tab.value(f"[...document.querySelectorAll('.deciding a')]{seen}")


FOCUS = "(() => {const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect(); return"
FOCUS += " {place: window.stops.indexOf(e), outline: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,"
FOCUS += " shown: r.right > 0 && r.bottom > 0 && r.left < innerWidth && r.top < innerHeight, text: e.textContent}})()"
STOPS = "window.stops = [...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
STOPS += ".filter(e => e.checkVisibility({contentVisibilityAuto: true})); stops.length"


def test_the_keyboard_reaches_everything_in_order(tab: Browser) -> None:
    """Tab goes from the skip link through every link, table and fold in the page's order, each visibly focused."""
    count = tab.value(STOPS)
    assert count > 30
    for place in range(count):
        tab.press("Tab")
        focus = tab.value(FOCUS)
        assert (focus["place"], focus["outline"], focus["shown"]) == (place, True, True), focus["text"][:80]
        assert place or focus["text"] == "Skip to the report"


def test_the_skip_link_skips(tab: Browser) -> None:
    """After it, the next stop is in the main part."""
    for key in ("Tab", "Enter", "Tab"):
        tab.press(key)
    assert tab.value("document.activeElement.closest('main') !== null")


def test_a_link_opens_the_fold_that_it_leads_to(tab: Browser) -> None:
    """The link to all gates shows them, although their table was folded."""
    tab.value("document.querySelector('a[href=\"#gates-2\"]').click()")
    assert tab.value("document.querySelector('#gates-2').closest('details').open")


CONTRAST = """(() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const poor = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, s = getComputedStyle(e);
    if (!walker.currentNode.data.trim() || e.closest('title') || s.display === 'none') continue;
    const [one, two] = [light(numbers(e.closest('svg') ? s.fill : s.color)), light(behind(e))].sort((a, b) => b - a);
    texts += 1;
    if ((one + 0.05) / (two + 0.05) < 4.5) poor.push(walker.currentNode.data.trim().slice(0, 60));
  }
  return {texts, poor};
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable(tab: Browser, scheme: str) -> None:
    """Each text stands out from what is behind it by 4.5:1 (WCAG 1.4.3), on light and on dark screens."""
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    found = tab.value(CONTRAST)
    assert found["texts"] > 1000
    assert found["poor"] == []
    paper = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_nothing_is_cut_on_paper(tab: Browser) -> None:
    """Between the margins of A4 no table is wider than the page, and folded tables are open."""
    tab.call("Emulation.setDeviceMetricsOverride", **A4, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setEmulatedMedia", media="print")
    wide = "[...document.querySelectorAll('table, svg, pre')].filter(e => e.getBoundingClientRect().right > innerWidth)"
    assert tab.value(f"{wide}.map(e => e.caption ? e.caption.textContent : e.tagName)") == []
    assert tab.value("[...document.querySelectorAll('details table')].every(e => e.getBoundingClientRect().height > 0)")


def test_the_print_has_pages_and_links(tab: Browser) -> None:
    """The PDF has a page for each section at least, text in it, and every link of the contents."""
    links = tab.value("document.querySelectorAll('nav a').length")
    pdf = base64.b64decode(tab.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= links
    assert len(re.findall(rb"/Subtype\s*/Link\b", pdf)) >= links
    assert b"/ToUnicode" in pdf
