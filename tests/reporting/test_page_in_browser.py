"""report.html in a headless Chromium, from disk: what it shows, what it says on the console, its width and its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from openbook.metrics.prediction import TokenProvenance
from openbook.reporting.report import write_report
from tests.browser import Browser
from tests.commands.test_answers import run_of
from tests.reporting.page.test_why import HIT, MISS, NOT_FIRST, NOT_RETRIEVED, READ_WRONGLY, RIGHT

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> \u2028 \U0001f30d Lomé"
TOKENS = (TokenProvenance("lo", (0.25, 0.75)), TokenProvenance("(end)", (1.0, 0.0)))
# Every visible text with its size in pixels on the screen, smallest first.
SIZES = """(() => {
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || ["SCRIPT", "STYLE", "OPTION", "NOSCRIPT"].includes(one.tagName)) continue;
    const svg = one.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    found.push(scale * parseFloat(getComputedStyle(one).fontSize));
  }
  return Math.min(...found);
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 questions, some of them hostile, with long words in every place."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    hostile = replace(
        READ_WRONGLY,
        id="h",
        question=HOSTILE,
        prediction=HOSTILE,
        relation=HOSTILE,
        tokens=TOKENS,
        passages=(HIT._replace(title=HOSTILE, text=HOSTILE), MISS._replace(text="w" * 900)),
    )
    wide = replace(READ_WRONGLY, id="w", passages=tuple(HIT._replace(id=f"p{n}", prior=0.05) for n in range(20)))
    wide = replace(wide, tokens=(TokenProvenance("x" * 40, (0.05,) * 20),))
    rest = [replace(RIGHT, id=f"r{n}", question=f"Which river is number {n}?", tokens=TOKENS) for n in range(296)]
    run_of(folder, hostile, wide, NOT_FIRST, NOT_RETRIEVED, *rest)
    steps = "".join(f"{n},{3 / (n + 1)},{n // 3}\n" for n in range(1, 20))
    (folder / "metrics.csv").write_text(f"step,train/nll_per_token,refresh/generation\n{steps}")
    (folder / "config.yaml").write_text("experiment: tiny\nseed: 3\nrun:\n  name: " + "x" * 200 + "\n")
    return write_report(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 400])
def test_readable_at_every_width_with_an_empty_console(page: Path, browser: Browser, width: int) -> None:
    assert page.stat().st_size < 1_000_000
    browser.open(page.as_uri(), width)
    assert browser.js("document.documentElement.scrollWidth") <= width, "no sideways scroll"
    assert browser.js(SIZES) >= 10
    assert browser.js("document.title").startswith("run / ")
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.messages == []


def test_search_and_filter(page: Path, browser: Browser) -> None:
    browser.open(page.as_uri(), 1280)

    def shown(**values: str) -> str:
        for name, value in values.items():
            browser.js(f"document.getElementById('{name}').value = {value!r}")
        browser.js("document.getElementById('text').dispatchEvent(new Event('input'))")
        return str(browser.js("document.getElementById('count').textContent"))

    assert shown() == "300 of 300 questions"
    assert browser.js("document.querySelectorAll('.question').length") == 30
    browser.js("document.getElementById('more').click()")
    assert browser.js("document.querySelectorAll('.question').length") == 180
    assert shown(text="NUMBER river 7?") == "29 of 300 questions"  # 7, 17, ... 287
    assert shown(text="", outcome="wrong") == "4 of 300 questions"
    assert shown(outcome="read_wrongly") == "2 of 300 questions"
    browser.js("document.querySelectorAll('.question').forEach((one) => { one.open = true; })")
    browser.until("document.querySelectorAll('#list .passage').length === 12")  # 2, and 10 of 20
    assert browser.js("document.querySelector('#list mark').textContent") == "Lomé"
    assert browser.js("document.querySelectorAll('#list .heat td.share').length") == 2 * 2 + 7
    assert browser.js("document.querySelector('#list .question b').textContent") == HOSTILE
    assert browser.js("document.documentElement.scrollWidth") <= 1280
    assert browser.messages == []
