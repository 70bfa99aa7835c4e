"""KILT's tasks (Petroni et al. 2021) and FEVER's own files: answers with the places in Wikipedia that they stand on."""

from collections.abc import Iterator
from typing import Any

from openbook.batch import Example
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import Asked, answers_of, listed, string, text
from openbook.data.readers.questions.family import Family, has


def kilt(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """Answers of `output`, and as positive ids the paragraphs of its `provenance`, named as the knowledge source's
    passages are here: page:paragraph. Provenance that names a page alone gives that page's id."""
    answers, positives, pages, ends = list[str](), list[str](), 0, 0
    for output in listed(record, "output"):
        answers += answers_of(output.get("answer"), "answer")
        for place in listed(output, "provenance"):
            page = place.get("wikipedia_id")
            if page is None:
                continue
            page, start = string(page, "wikipedia_id", numbers=True), place.get("start_paragraph_id")
            if start is None:
                positives.append(page)
                pages += 1
                continue
            end = place.get("end_paragraph_id")
            if end is None:  # left open in some of KILT's files
                end = start
                ends += 1
            if type(start) is not int or type(end) is not int or not start <= end < start + 1000:
                raise BadLineError("provenance names no paragraphs", got=f"{start!r} to {end!r}", expected="numbers")
            positives += [f"{page}:{paragraph}" for paragraph in range(start, end + 1)]
    identity = string(record.get("id", number), "id", numbers=True)
    example = Example(identity, text(record, "input"), tuple(dict.fromkeys(answers)), tuple(dict.fromkeys(positives)))
    notes = ("places that name a page and no paragraph of it",) * pages
    yield Asked(example, (), (*notes, *("places without their last paragraph are taken as one paragraph",) * ends))


def fever(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """The claim is the question, its label the answer, and the pages of its evidence the positive passages."""
    pages = []
    for group in listed(record, "evidence", list):
        for piece in group:
            if not isinstance(piece, list) or len(piece) < 4:
                expected = "[annotation, evidence, page, sentence]"
                raise BadLineError("a piece of evidence is no list of four", got=f"{piece!r}"[:80], expected=expected)
            pages += [string(piece[2], "evidence")] if piece[2] is not None else []
    identity = string(record.get("id", number), "id", numbers=True)
    answers = answers_of(record.get("label"), "label")
    yield Asked(Example(identity, text(record, "claim"), answers, tuple(dict.fromkeys(pages))))


FAMILIES = (
    Family("KILT", lambda one: has(one, "input", "output"), kilt),
    Family("FEVER", lambda one: has(one, "claim") and ("label" in one or "evidence" in one), fever),
)
