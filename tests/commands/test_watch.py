"""The live report: one page, for this machine alone, made anew when the run's files change."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openbook.commands.trained.watch import LivePage, server, watch
from openbook.errors import OpenBookError
from tests.browser import Browser
from tests.commands.test_answers import RIGHT, WRONG, run_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Under way: there are curves and no answers yet."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("experiment: tiny\n")
    (tmp_path / "run" / "metrics.csv").write_text("step,train/nll_per_token\n1,3.5\n2,3.25\n")
    return tmp_path / "run"


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    with server(run, "0") as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield int(serving.server_address[1])
        serving.shutdown()
        thread.join()


def asked(port: int, path: str, host: str = "", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_one_page_and_its_state(run: Path, port: int) -> None:
    status, page = asked(port, "/")
    state = asked(port, "/state")[1]
    assert status == 200 and f'data-live="{state}"' in page and "connect-src &#39;self&#39;" not in page
    assert "connect-src 'self'" in page and "predictions.jsonl is missing" in page
    run_of(run, RIGHT, WRONG)
    assert asked(port, "/state")[1] != state
    assert "What is the capital of Togo?" in asked(port, "/", f"localhost:{port}")[1]


@pytest.mark.parametrize("path", ["/config.yaml", "/../config.yaml", "/report.html", "/?x", "/state/", "/favicon.ico"])
def test_no_file_is_served(port: int, path: str) -> None:
    assert asked(port, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"]
)
def test_another_host_is_refused(port: int, host: str) -> None:
    status, said = asked(port, "/", host.format(port=port))
    assert status == 403 and said == "this server answers to 127.0.0.1 and localhost alone\n"


def test_nothing_can_be_sent(port: int) -> None:
    assert asked(port, "/", method="POST")[0] == 501


def test_a_run_that_is_gone_is_said(run: Path, port: int) -> None:
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    status, said = asked(port, "/")
    assert status == 503 and said.startswith("no run folder to report on")


def test_the_page_is_made_once_for_every_state(run: Path) -> None:
    live = LivePage(run)
    assert live.page() is live.page()


def test_bad_ports_and_runs(run: Path, port: int, tmp_path: Path) -> None:
    for wrong, said in (("http", "not a port"), ("70000", "not a port"), (str(port), "the port cannot be used")):
        with pytest.raises(OpenBookError, match=said):
            server(run, wrong)
    with pytest.raises(OpenBookError):
        watch(str(tmp_path / "nothing"), "0")


def test_the_open_page_renews_itself(run: Path, port: int, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"http://127.0.0.1:{port}/", 1280)
        assert not browser.js("document.body.innerText.includes('capital of Togo')")
        run_of(run, RIGHT, WRONG)
        browser.until("document.body.innerText.includes('capital of Togo')")
        browser.js("document.getElementById('text').value = 'ghana'")
        browser.js("document.getElementById('text').dispatchEvent(new Event('input'))")
        assert browser.js("document.getElementById('count').textContent") == "1 of 2 questions"
        browser.open(f"http://127.0.0.1:{port}/", 1280)  # a page that had answers from its start
        browser.js("document.getElementById('text').value = 'ghana'")
        (run / "metrics.csv").write_text("step,train/nll_per_token\n1,3.5\n2,3.25\n3,3.125\n4,3.0\n5,2.5\n6,2.25\n")
        browser.until("[...document.querySelectorAll('svg text')].some((one) => one.textContent === '6')")
        assert browser.js("document.getElementById('text').value") == "ghana", "what was typed stays"
        assert browser.messages == []
