"""The HTTP interface: Search-R1's POST /retrieve (Jin et al. 2025, arXiv:2503.09516), and POST /answer in its spirit.

    POST /retrieve  {"queries": [text], "topk": 3, "return_scores": true}
                    {"result": [[{"document": {"id", "contents"}, "score"}]]}, without scores [[{"id", "contents"}]]
    POST /answer    {"queries": [text], "n_docs": 4, "objective": "rag_token", "beams": 4, "decoding": "fast"}
                    {"result": [{"answer", "logprob", "passages": [{"document", "prior", "posterior"}], "tokens"}]}
    GET  /health    what is served
    POST /swap      {} or {"corpus": FILE, "run": FOLDER}, from this machine only

What goes wrong is {"error": a sentence}. The header X-OpenBook-Generation says which generation answered.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from openbook.config.evaluation import ServeConfig
from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction
from openbook.serving.batcher import Answered, Batcher
from openbook.serving.current import BusyError, Current
from openbook.serving.guard import is_loopback
from openbook.serving.served import HowToAnswer

GENERATION = "X-OpenBook-Generation"
_Result = TypeVar("_Result")


class Strict(BaseModel):
    """Nothing is guessed: a number is no text, and a field that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Retrieve(Strict):
    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class Answer(Strict):
    queries: list[str]
    objective: Literal["", "rag_token", "rag_sequence"] = ""
    n_docs: int = 0
    beams: int = 0
    decoding: Literal["", "thorough", "fast", "greedy"] = ""


class Swap(Strict):
    corpus: str = ""
    run: str = ""


def create_app(current: Current, batcher: Batcher, limits: ServeConfig) -> FastAPI:
    app = new_app("openbook serve")

    @app.post("/retrieve")
    async def retrieve(asked: Annotated[Retrieve, Body()]) -> JSONResponse:
        topk = current.served().n_docs if asked.topk is None else asked.topk
        check_queries(asked.queries, limits)
        check_number("topk", topk, 1, limits.max_topk)
        answered = await answer_of(batcher, current, asked.queries, topk)
        result = [
            [{"document": document(hit), "score": hit.score} if asked.return_scores else document(hit) for hit in hits]
            for hits in answered.results
        ]
        return said({"result": result}, answered)

    @app.post("/answer")
    async def answer(asked: Annotated[Answer, Body()]) -> JSONResponse:
        how = HowToAnswer(asked.objective, asked.n_docs, asked.beams, asked.decoding)
        answered = await answer_of(batcher, current, checked(asked.queries, how, limits), how)
        return said({"result": [told(one) for one in answered.results]}, answered)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        served = current.served()
        done = {"passes": batcher.passes, "requests": batcher.requests}
        return {"status": "ok", "generation": served.generation, **served.facts, "answered": done}

    @app.post("/swap")
    async def swap(request: Request, asked: Annotated[Swap, Body()]) -> Any:
        if request.client is None or not is_loopback(request.client.host):
            return error(403, "A swap is for programs on the server's own machine.")
        source = current.source._replace(run=asked.run) if asked.run else current.source
        served = await in_daemon(lambda: current.swap(source.with_corpus(asked.corpus)))
        return {"generation": served.generation, **served.facts}

    return app


def new_app(title: str) -> FastAPI:
    """An application without pages of its own, whose errors are sentences."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(OpenBookError)
    async def refused(request: Request, problem: OpenBookError) -> JSONResponse:
        return error(503 if isinstance(problem, BusyError) else 422, str(problem))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        return error(422, "; ".join(map(_sentence, problem.errors())) + ".")

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> JSONResponse:
        return error(problem.status_code, f"{problem.detail}: {request.method} {request.url.path}.")

    @app.exception_handler(Exception)
    async def failed(request: Request, problem: Exception) -> JSONResponse:
        return error(500, f"The server failed ({type(problem).__name__}); its log says where.")

    return app


async def in_daemon(call: Callable[[], _Result]) -> _Result:
    """What a call returns, from a thread that does not keep the process from ending, as one of asyncio.to_thread does:
    a server that is told to end need not encode a corpus first that it will not serve."""
    future: Future[_Result] = Future()
    future.set_running_or_notify_cancel()  # whoever waits may give up; the call goes on

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="swap", daemon=True).start()
    return await asyncio.wrap_future(future)


async def answer_of(batcher: Batcher, current: Current, queries: Sequence[str], how: int | HowToAnswer) -> Answered:
    return await asyncio.wrap_future(batcher.submit(current, queries, how))


def checked(queries: list[str], how: HowToAnswer, limits: ServeConfig) -> list[str]:
    """The questions of a request for answers, which is within the limits; an OpenBookError else."""
    check_queries(queries, limits)
    for name, value, most in (("n_docs", how.n_docs, limits.max_n_docs), ("beams", how.beams, limits.max_beams)):
        check_number(name, value, 0, most)
    return queries


def check_queries(queries: list[str], limits: ServeConfig) -> None:
    if not 1 <= len(queries) <= limits.max_queries:
        expected = f"1 to {limits.max_queries:,} (serve.max_queries)"
        raise OpenBookError("not so many questions in a request", where="queries", got=len(queries), expected=expected)
    for place, text in enumerate(queries):
        where = f"queries[{place}]"
        if not text.strip():
            raise OpenBookError("a question without words", where=where)
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise OpenBookError("half of a surrogate pair, which is no character", where=where)
        if len(text) > limits.max_characters:
            expected = f"at most {limits.max_characters:,} (serve.max_characters)"
            got = f"{len(text):,} characters"
            raise OpenBookError("a question is too long", where=where, got=got, expected=expected)


def check_number(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        expected = f"{least} to {most:,} (serve.max_{name})"
        raise OpenBookError("a number out of range", where=name, got=f"{value:,}", expected=expected)


def document(passage: Any) -> dict[str, str]:
    """A passage as Search-R1's corpora have it: the first line of `contents` is the title in quotation marks."""
    title = " ".join(passage.title.split())
    return {"id": passage.id, "contents": f'"{title}"\n{passage.text}'}


def told(one: Prediction) -> dict[str, Any]:
    """An answer and where it comes from."""
    return {
        "answer": one.prediction,
        "logprob": one.logprob,
        "passages": [
            {"document": document(passage), "prior": passage.prior, "posterior": passage.posterior}
            for passage in one.passages
        ],
        "tokens": [{"text": token.text, "weights": list(token.weights)} for token in one.tokens],
    }


def said(content: dict[str, Any], answered: Answered) -> JSONResponse:
    return JSONResponse(content, headers={GENERATION: str(answered.served.generation)})


def error(status: int, sentence: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": sentence}, status, headers)


def _sentence(problem: Any) -> str:
    """What is wrong with a field, in the request's own words: queries[3]: Input should be a valid string, got 7."""
    if problem["type"] == "json_invalid":
        return f"the request is no JSON at character {problem['loc'][-1]}"
    first, *rest = [part for part in problem["loc"] if part != "body"] or ["the request"]
    where = f"{first}{''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in rest)}"
    got = "" if problem["type"] == "missing" else f", got {str(problem.get('input'))[:60]!r}"
    return f"{where}: {problem['msg']}{got}"
