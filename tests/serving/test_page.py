"""The page: its one address, its headers, and what a browser makes of it at two widths."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from openbook.serving.batcher import Batcher
from openbook.serving.current import Current, Source
from openbook.serving.served import HowToAnswer
from tests.serving.conftest import LIMITS, Trained

TESTED = {"run": "runs/small/1", "objective": "rag_token", "n_docs": 3, "beams": 1, "decoding": "thorough"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script> </script> &amp; text"


def page_of(listen: Callable[..., int], batcher: Batcher, **corpora: Current) -> str:
    from openbook.serving.page import create_page

    return f"http://127.0.0.1:{listen(create_page(corpora, TESTED, batcher, LIMITS))}"


@pytest.fixture
def url(trained: Trained, batcher: Batcher, listen: Callable[..., int]) -> str:
    own, other = (Current(lambda _, one=one: one, Source("run")) for one in (trained.original, trained.other))
    return page_of(listen, batcher, own=own, other=other)


def ask(url: str, question: str, corpus: str = "own", **more: object) -> requests.Response:
    return requests.post(f"{url}/ask", json={"question": question, "corpus": corpus, **more}, timeout=60)


def test_an_answer_is_the_models_over_the_corpus_that_is_chosen(url: str, trained: Trained) -> None:
    question = trained.questions[0]
    for name, served in (("own", trained.original), ("other", trained.other)):
        one, (expected,) = ask(url, question, name).json(), served.answer([question])
        assert (one["answer"], one["n_passages"]) == (expected.prediction, 37)
        assert [(p["id"], p["text"]) for p in one["passages"]] == [(p.id, p.text) for p in expected.passages]
        assert [token["text"] for token in one["tokens"]] == [token.text for token in expected.tokens]
    switched = ask(url, question, objective="rag_sequence", n_docs=2, beams=2, decoding="fast").json()
    (expected,) = trained.original.answer([question], HowToAnswer("rag_sequence", 2, 2, "fast"))
    assert switched["answer"] == expected.prediction and len(switched["passages"]) == 2 and not switched["tokens"]


def test_what_cannot_be_asked_is_a_sentence(url: str) -> None:
    for given, said in (
        ({"question": ""}, "a question without words"),
        (
            {"question": "who ?", "corpus": "/etc/passwd"},
            "no such corpus here: got '/etc/passwd', expected one of own, o",
        ),
        ({"question": "who ?", "n_docs": 99}, "a number out of range (n_docs): got 99, expected 0 to 4"),
        ({"question": "who ?", "decoding": "fast"}, "a way of decoding that this objective does not have"),
    ):
        answered = ask(url, **given)  # type: ignore[arg-type]
        assert answered.status_code == 422 and said in answered.json()["error"]


def test_there_is_no_route_to_a_file_and_nothing_from_the_network(url: str) -> None:
    for path in ("/page.html", "/static/x", "/..%2f..%2fetc/passwd", "/docs", "/openapi.json", "/retrieve"):
        assert requests.get(url + path, timeout=60).status_code == 404
    from openbook.serving.page import page

    answered = requests.get(url, timeout=60)
    assert answered.text == page() and not re.search(r"https?://|@import|url\(", page())
    assert "innerHTML" not in page() and " style=" not in page() and not re.search(r"\son\w+=", page())
    policy = answered.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert requests.get(url, headers={"Host": "evil.example"}, timeout=60).status_code == 403
    evil = {"Origin": "https://evil.example", "Content-Type": "application/json"}
    assert requests.post(f"{url}/ask", data="{}", headers=evil, timeout=60).status_code == 403


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_markup_as_text(
    width: int, trained: Trained, batcher: Batcher, listen: Callable[..., int], tmp_path: Path
) -> None:
    """By the DevTools protocol's own dump: the page after it has asked, its width, and what its console said."""
    playwright = pytest.importorskip("playwright.sync_api")
    tested = trained.original.answer(trained.questions[:1])[0]
    hostile = replace(tested, passages=tuple(one._replace(text=HOSTILE, title=HOSTILE) for one in tested.passages))

    class Hostile:
        generation, corpus = 0, trained.original.corpus

        def answer(self, questions: object, how: object) -> list[object]:
            return [hostile]

    current = Current(lambda source: Hostile(), Source("run"))  # type: ignore[arg-type, return-value]
    url = page_of(listen, batcher, own=current)
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view, said = browser.new_page(viewport={"width": width, "height": 900}), list[str]()
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda problem: said.append(str(problem)))
        view.goto(url)
        view.fill("#question", "who ?")
        view.click("#go")
        view.wait_for_selector("#main:not([hidden])")
        assert view.locator("#passages li").count() == 3
        assert HOSTILE.strip() in view.locator("#passages li p").first.text_content()
        assert view.locator("#passages img, #passages script").count() == 0 and view.title() == "ask runs/small/1"
        assert view.locator("#grid tbody tr").count() == len(tested.tokens)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        sizes = (
            "Math.min(...[...document.querySelectorAll('body *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert view.evaluate(sizes) >= 10
        assert said == []
        browser.close()
