"""The page of `ask`: one HTML page and the one address that it asks; there is no route to a file."""

import re
import time
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from openbook.config.evaluation import ServeConfig
from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction
from openbook.serving.app import Strict, answer_of, checked, new_app
from openbook.serving.batcher import Batcher
from openbook.serving.current import Current
from openbook.serving.served import HowToAnswer


class Ask(Strict):
    question: str
    corpus: str
    objective: Literal["", "rag_token", "rag_sequence"] = ""
    n_docs: int = 0
    beams: int = 0
    decoding: Literal["", "thorough", "fast", "greedy"] = ""


def create_page(
    corpora: Mapping[str, Current], tested: Mapping[str, Any], batcher: Batcher, limits: ServeConfig
) -> FastAPI:
    """corpora: by their names, the run's own first; the others are loaded when they are first asked. tested: objective,
    n_docs, beams and decoding of the run's test, and `run`, its name."""
    app, html = new_app("openbook ask"), page()
    headers = headers_of(html)

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @app.get("/about")
    async def about() -> dict[str, Any]:
        most = {"n_docs": limits.max_n_docs, "beams": limits.max_beams, "characters": limits.max_characters}
        return {"tested": dict(tested), "corpora": list(corpora), "most": most}

    @app.post("/ask")
    async def ask(asked: Annotated[Ask, Body()]) -> dict[str, Any]:
        if asked.corpus not in corpora:
            raise OpenBookError("no such corpus here", got=repr(asked.corpus), expected=f"one of {', '.join(corpora)}")
        how = HowToAnswer(asked.objective, asked.n_docs, asked.beams, asked.decoding)
        questions, current = checked([asked.question], how, limits), corpora[asked.corpus]
        await run_in_threadpool(current.served)
        started = time.perf_counter()
        answered = await answer_of(batcher, current, questions, how)
        seconds = time.perf_counter() - started
        return shown(answered.results[0]) | {"seconds": seconds, "n_passages": answered.served.corpus.n_passages}

    return app


def shown(one: Prediction) -> dict[str, Any]:
    """What the page shows of an answer."""
    names = ("id", "title", "text", "prior", "posterior")
    return {
        "answer": one.prediction,
        "logprob": one.logprob,
        "others": [list(pair) for pair in one.candidates[1:]],
        "passages": [{name: getattr(passage, name) for name in names} for passage in one.passages],
        "tokens": [{"text": token.text, "weights": list(token.weights)} for token in one.tokens],
    }


def page() -> str:
    return files("openbook.serving").joinpath("page.html").read_text(encoding="utf-8")


def headers_of(html: str) -> dict[str, str]:
    """Its own script and style run and nothing else; it is in no frame, and nothing is kept of it."""
    hashes = {
        tag: " ".join(
            f"'sha256-{b64encode(sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
