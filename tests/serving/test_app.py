"""The protocol over real connections: Search-R1's client, answers, limits, and a swap that really loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from threading import current_thread
from typing import Any

import pytest
import requests

from openbook.commands.trained.serve import load
from openbook.serving.batcher import Batcher
from openbook.serving.current import Current, Source
from tests.serving.conftest import LIMITS, Trained


def served_by(listen: Callable[..., int], current: Current, batcher: Batcher) -> str:
    from openbook.serving.app import create_app

    return f"http://127.0.0.1:{listen(create_app(current, batcher, LIMITS))}"


@pytest.fixture
def current(trained: Trained) -> Current:
    def prepared(source: Source) -> Any:
        return load(source) if source.overrides or source.run != str(trained.path) else trained.original

    return Current(prepared, Source(str(trained.path)))


@pytest.fixture
def url(current: Current, batcher: Batcher, listen: Callable[..., int]) -> str:
    return served_by(listen, current, batcher)


class SearchClient:
    """The retrieval of a search agent in reinforcement learning, as Search-R1's protocol has it: a turn's queries in
    one request with scores, and a text for the model made of the hits, titles on the first line of `contents`."""

    def __init__(self, search_url: str, topk: int):
        self.search_url, self.topk = search_url, topk

    def batch_search(self, queries: list[str]) -> list[str]:
        payload = {"queries": queries, "topk": self.topk, "return_scores": True}
        result = requests.post(self.search_url, json=payload, timeout=60).json()["result"]
        return [self.as_text(hits) for hits in result]

    @staticmethod
    def as_text(hits: list[dict[str, Any]]) -> str:
        text = ""
        for place, hit in enumerate(hits, 1):
            title, *rest = hit["document"]["contents"].split("\n")
            text += f"Doc {place}(Title: {title}) " + "\n".join(rest) + "\n"
        return text


def test_a_search_agents_client_works_as_it_is(url: str, trained: Trained) -> None:
    asked = trained.questions[:4]
    texts = SearchClient(f"{url}/retrieve", topk=3).batch_search(asked)
    for text, hits in zip(texts, trained.original.retrieve(asked, 3), strict=True):
        assert text == "".join(f'Doc {n}(Title: "{hit.title}") {hit.text}\n' for n, hit in enumerate(hits, 1))


def post(url: str, body: Any, **more: Any) -> Any:
    return requests.post(url, json=body, timeout=60, **more)


def test_with_and_without_scores(url: str, trained: Trained) -> None:
    asked = trained.questions[:2]
    hits = trained.original.retrieve(asked, 2)
    answered = post(f"{url}/retrieve", {"queries": asked, "topk": 2, "return_scores": True})
    assert answered.status_code == 200 and answered.headers["X-OpenBook-Generation"] == "0"
    assert [[one["document"]["id"] for one in own] for own in answered.json()["result"]] == [
        [hit.id for hit in own] for own in hits
    ]
    scores = [one["score"] for own in answered.json()["result"] for one in own]
    assert scores == pytest.approx([hit.score for own in hits for hit in own], rel=1e-4)
    plain = post(f"{url}/retrieve", {"queries": asked}).json()["result"]  # topk: as many as the run reads
    assert [len(own) for own in plain] == [3, 3] and set(plain[0][0]) == {"id", "contents"}


def test_answers_with_their_passages_and_tokens(url: str, trained: Trained) -> None:
    body = {"queries": trained.questions[:2], "n_docs": 2, "beams": 2}
    first, second = post(f"{url}/answer", body).json()["result"]
    assert set(first) == set(second) == {"answer", "logprob", "passages", "tokens"}
    assert sum(one["prior"] for one in first["passages"]) == pytest.approx(1, abs=1e-5)
    assert [len(token["weights"]) for token in first["tokens"]] == [2] * len(first["tokens"])
    body = {"queries": trained.questions[:1], "objective": "rag_sequence", "decoding": "greedy"}
    assert post(f"{url}/answer", body).json()["result"][0]["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("retrieve", {"queries": []}, 422, "not so many questions in a request (queries): got 0, expected 1 to 8"),
        ("retrieve", {"queries": ["a"] * 9}, 422, "got 9, expected 1 to 8 (serve.max_queries)"),
        ("retrieve", {"queries": ["a", " "]}, 422, "a question without words (queries[1])."),
        ("retrieve", {"queries": ["a" * 201]}, 422, "(queries[0]): got 201 characters, expected at most 200"),
        ("retrieve", {"queries": ["a"], "topk": 6}, 422, "a number out of range (topk): got 6, expected 1 to 5"),
        ("retrieve", {"queries": ["a"], "topk": 0}, 422, "a number out of range (topk): got 0, expected 1 to 5"),
        ("retrieve", {"queries": ["a"], "topk": True}, 422, "topk: Input should be a valid integer, got 'True'."),
        ("retrieve", {"queries": ["a", 7]}, 422, "queries[1]: Input should be a valid string, got '7'."),
        ("retrieve", {"queries": "a"}, 422, "queries: Input should be a valid list, got 'a'."),
        ("retrieve", {"queries": ["a"], "top_k": 3}, 422, "top_k: Extra inputs are not permitted, got '3'."),
        ("retrieve", {"topk": 3}, 422, "queries: Field required."),
        ("retrieve", {"queries": ["\ud800"]}, 422, "half of a surrogate pair, which is no character (queries[0])."),
        ("retrieve", [], 422, "the request: "),
        ("answer", {"queries": ["a"], "n_docs": 5}, 422, "(n_docs): got 5, expected 0 to 4 (serve.max_n_docs)."),
        (
            "answer",
            {"queries": ["a"], "objective": "closed_book"},
            422,
            "objective: Input should be '', 'rag_token' or",
        ),
        ("answer", {"queries": ["a"], "decoding": "fast"}, 422, "a way of decoding that this objective does not have"),
        ("retrieve", {"queries": ["a " * 100]}, 422, "a question is longer than the limit"),
        ("swap", {"corpus": "nothing.jsonl"}, 422, "nothing.jsonl"),
        ("../etc/passwd", {}, 404, "Not Found: POST "),
    ],
)
def test_what_is_wrong_is_a_sentence(url: str, path: str, body: Any, status: int, said: str) -> None:
    answered = post(f"{url}/{path}", body)
    assert (answered.status_code, said in answered.json()["error"]) == (status, True), answered.text
    assert requests.get(f"{url}/health", timeout=60).json()["generation"] == 0


def test_what_is_no_json(url: str) -> None:
    kind = {"Content-Type": "application/json"}
    answered = requests.post(f"{url}/retrieve", data='{"queries": ["a"', headers=kind, timeout=60)
    assert answered.status_code == 422
    assert answered.json() == {"error": "the request is no JSON at character 16."}
    assert requests.get(f"{url}/retrieve", timeout=60).json()["error"] == "Method Not Allowed: GET /retrieve."
    assert requests.get(f"{url}/docs", timeout=60).status_code == 404


def test_a_failure_is_a_sentence_too(trained: Trained, batcher: Batcher, listen: Callable[..., int]) -> None:
    def broken(examples: Any) -> Any:
        raise ZeroDivisionError

    served = replace(trained.original, batch_of=broken)
    url = served_by(listen, Current(lambda source: served, Source("run")), batcher)
    answered = post(f"{url}/retrieve", {"queries": ["a"]})
    assert answered.status_code == 500
    assert answered.json() == {"error": "The server failed (ZeroDivisionError); its log says where."}


def test_a_swap_loads_another_corpus_and_the_run_again(url: str, trained: Trained, current: Current) -> None:
    health = requests.get(f"{url}/health", timeout=60).json()
    assert (health["status"], health["generation"], health["n_passages"]) == ("ok", 0, 37)
    swapped = post(f"{url}/swap", {"corpus": str(trained.changed)}).json()
    assert (swapped["generation"], swapped["corpus"]) == (1, str(trained.changed))
    answered = post(f"{url}/retrieve", {"queries": trained.questions[:1], "topk": 3})
    assert answered.headers["X-OpenBook-Generation"] == "1"
    assert [one["contents"] for one in answered.json()["result"][0]] == [
        f'"{hit.title}"\n{hit.text}' for hit in trained.other.retrieve(trained.questions[:1], 3)[0]
    ]
    again = post(f"{url}/swap", {}).json()  # the same corpus as before, read again
    assert (again["generation"], again["corpus"]) == (2, str(trained.changed))
    assert again["corpus_fingerprint"] == swapped["corpus_fingerprint"] != health["corpus_fingerprint"]


def test_a_swap_does_not_keep_the_process(trained: Trained) -> None:
    from openbook.serving.app import in_daemon

    assert asyncio.run(in_daemon(lambda: current_thread().daemon))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_daemon(lambda: 1 // 0))
