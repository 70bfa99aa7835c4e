"""Small files in the formats' real shapes, shared by the tests of the readers and those that train from them.

Every file asks for the capitals of alpha (beta) and gamma (delta); where it has passages, they are those of `PASSAGES`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ASKED = {
    "q1": ("what is the capital of alpha ?", ["beta", "beta city"]),
    "q2": ("what is the capital of gamma ?", ["delta"]),
}
PASSAGES = {
    "1": ("alpha", "the capital of alpha is beta ."),
    "2": ("gamma", "the capital of gamma is delta ."),
    "3": ("kappa", "a river flows through kappa ."),
    "4": ("omega", "the king of omega lives in sigma ."),
}
GOLD, WRONG = {"q1": "1", "q2": "2"}, {"q1": "3", "q2": "4"}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def rows(records: list[list[str]], delimiter: str = "\t") -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(records)
    return buffer.getvalue()


def _context(identity: str) -> dict[str, Any]:
    title, text = PASSAGES[identity]
    return {"title": title, "text": text, "score": 14.5, "title_score": 0, "passage_id": identity}


def dpr() -> str:
    return json.dumps(
        [
            {
                "dataset": "nq_dev_psgs_w100",
                "question": question,
                "answers": answers,
                "positive_ctxs": [_context(GOLD[key])],
                "negative_ctxs": [],
                "hard_negative_ctxs": [_context(WRONG[key])],
            }
            for key, (question, answers) in ASKED.items()
        ],
        indent=1,
    )


def tevatron() -> str:
    def passage(identity: str) -> dict[str, str]:
        return {"docid": identity, "title": PASSAGES[identity][0], "text": PASSAGES[identity][1]}

    return lines(
        *(
            {
                "query_id": key,
                "query": question,
                "answers": answers,
                "positive_passages": [passage(GOLD[key])],
                "negative_passages": [passage(WRONG[key])],
            }
            for key, (question, answers) in ASKED.items()
        )
    )


def triviaqa() -> str:
    data = [
        {
            "Answer": {
                "Aliases": answers[1:],
                "NormalizedAliases": answers[1:],
                "NormalizedValue": answers[0],
                "Type": "WikipediaEntity",
                "Value": answers[0],
            },
            "EntityPages": [],
            "Question": question,
            "QuestionId": key,
            "QuestionSource": "http://www.example.org/",
            "SearchResults": [],
        }
        for key, (question, answers) in ASKED.items()
    ]
    return json.dumps({"Data": data, "Domain": "unfiltered-web", "Split": "train", "VERSION": 1.0}, indent=4)


def squad(version: str) -> str:
    def asked(key: str) -> dict[str, Any]:
        question, answers = ASKED[key]
        found = [{"answer_start": 24, "text": answers[0]}]
        known = {"id": key, "question": question, "answers": found}
        return known | ({"is_impossible": False} if version == "v2.0" else {})

    never = {
        "id": "q9",
        "question": "who is queen of kappa ?",
        "answers": [],
        "plausible_answers": [],
        "is_impossible": True,
    }
    paragraphs = {key: {"context": PASSAGES[GOLD[key]][1], "qas": [asked(key)]} for key in ASKED}
    other = {"context": PASSAGES["3"][1], "qas": [never] if version == "v2.0" else []}
    if version == "v1.1":
        other["qas"] = [
            {"id": "q8", "question": "what flows through kappa ?", "answers": [{"answer_start": 2, "text": "river"}]}
        ]
    data = [
        {"title": "alpha", "paragraphs": [paragraphs["q1"]]},
        {"title": "gamma", "paragraphs": [paragraphs["q2"]]},
        {"title": "kappa", "paragraphs": [other]},
    ]
    return json.dumps({"version": version, "data": data})


def hotpot(two_wiki: bool = False) -> str:
    records = []
    for key, (question, answers) in ASKED.items():
        context = [[PASSAGES[one][0], [PASSAGES[one][1], " it is old ."]] for one in (GOLD[key], WRONG[key])]
        record = {"_id": key, "answer": answers[0], "question": question, "context": context, "type": "bridge"}
        record["supporting_facts"] = [[PASSAGES[GOLD[key]][0], 0]]
        records.append(record | ({"evidences": [["alpha", "capital", "beta"]]} if two_wiki else {"level": "hard"}))
    return json.dumps(records)


def musique() -> str:
    records = []
    for key, (question, answers) in ASKED.items():
        paragraphs = [
            {"idx": n, "title": PASSAGES[one][0], "paragraph_text": PASSAGES[one][1], "is_supporting": n == 0}
            for n, one in enumerate((GOLD[key], WRONG[key]))
        ]
        record = {"id": f"2hop__{key}", "paragraphs": paragraphs, "question": question, "question_decomposition": []}
        records.append(record | {"answer": answers[0], "answer_aliases": answers[1:], "answerable": True})
    return lines(*records)


def kilt() -> str:
    def provenance(page: str) -> dict[str, Any]:
        place = {"wikipedia_id": page, "title": PASSAGES[page][0], "section": "Section::::Abstract.", "bleu_score": 1.0}
        return place | {"start_paragraph_id": 1, "start_character": 0, "end_paragraph_id": 1, "end_character": 9}

    return lines(
        *(
            {
                "id": key,
                "input": question,
                "output": [
                    *({"answer": answer, "provenance": [provenance(GOLD[key])]} for answer in answers[:1]),
                    *({"answer": answer} for answer in answers[1:]),
                    {"provenance": [provenance(GOLD[key])]},
                ],
                "meta": {},
            }
            for key, (question, answers) in ASKED.items()
        )
    )


def kilt_source() -> str:
    return lines(
        *(
            {
                "_id": key,
                "wikipedia_id": key,
                "wikipedia_title": title,
                "text": [f"{title}\n", f"{text}\n", "Section::::Rivers.\n", f"a river flows through {title} .\n"],
                "anchors": [],
                "categories": "",
                "history": {},
            }
            for key, (title, text) in PASSAGES.items()
        )
    )


def fever() -> str:
    evidence = [[[289914, 283015, "alpha", 0]], [[1, 2, "gamma_-LRB-state-RRB-", 3]]]
    return lines(
        {
            "id": 137,
            "verifiable": "VERIFIABLE",
            "label": "SUPPORTS",
            "claim": "alpha is a country",
            "evidence": evidence,
        },
        {
            "id": 10,
            "verifiable": "NOT VERIFIABLE",
            "label": "NOT ENOUGH INFO",
            "claim": "x",
            "evidence": [[[1, None, None, None]]],
        },
    )


def fever_pages() -> str:
    pages = {"alpha": PASSAGES["1"][1], "gamma_-LRB-state-RRB-": PASSAGES["2"][1], "kappa": PASSAGES["3"][1], "": ""}
    return lines(*({"id": name, "text": text, "lines": f"0\t{text}\t\n1\t"} for name, text in pages.items()))


def _msmarco() -> list[dict[str, Any]]:
    records = []
    for number, (key, (question, answers)) in enumerate(ASKED.items(), 1):
        passages = [
            {"is_selected": int(n == 0), "passage_text": PASSAGES[one][1], "url": "http://example.org"}
            for n, one in enumerate((GOLD[key], WRONG[key]))
        ]
        record: dict[str, Any] = {"answers": answers[:1], "passages": passages, "query": question, "query_id": number}
        records.append(record | {"query_type": "LOCATION", "wellFormedAnswers": []})
    none = [{"is_selected": 0, "passage_text": PASSAGES["3"][1], "url": "http://example.org"}]
    records.append(records[0] | {"answers": ["No Answer Present."], "passages": none, "query": "why ?", "query_id": 7})
    return records


def msmarco() -> str:
    return lines(*_msmarco())


def msmarco_columns() -> str:
    """The release's own file, which pandas wrote."""
    records = _msmarco()
    columns = {key: {str(n): record[key] for n, record in enumerate(records)} for key in records[0]}
    columns["wellFormedAnswers"] = {str(n): "[]" for n in range(len(records))}
    return json.dumps(columns)


def popqa() -> str:
    table = [["id", "subj", "prop", "obj", "s_pop", "question", "possible_answers"]]
    return rows(
        table
        + [
            [key, "alpha", "capital", answers[0], "12", question, json.dumps(answers)]
            for key, (question, answers) in ASKED.items()
        ]
    )


def written_webquestions(answers: list[str]) -> str:
    return f"(list {' '.join(f'(description {json.dumps(one) if chr(32) in one else one})' for one in answers)})"


# Files of questions: {format: {file name: content}}, the first file being the one that is named.
QUESTION_FILES: dict[str, Callable[[], Mapping[str, str]]] = {
    "openbook questions": lambda: {
        "q.txt": lines(*({"id": k, "question": q, "answers": a} for k, (q, a) in ASKED.items()))
    },
    "NQ-open": lambda: {"q.jsonl": lines(*({"question": q, "answer": a} for q, a in ASKED.values()))},
    "TriviaQA": lambda: {"q.json": triviaqa()},
    "WebQuestions": lambda: {
        "q.json": json.dumps(
            [{"url": "u", "targetValue": written_webquestions(a), "utterance": q} for q, a in ASKED.values()]
        )
    },
    "WebQuestions as a list": lambda: {
        "q.json": json.dumps([{"qId": k, "answers": a, "qText": q} for k, (q, a) in ASKED.items()], indent=1)
    },
    "CuratedTREC": lambda: {"q.tsv": "".join(f"{k}\tfactoid\t{q}\t{'|'.join(a)}\n" for k, (q, a) in ASKED.items())},
    "DPR questions between tabs": lambda: {"q.csv": rows([[q, repr(a)] for q, a in ASKED.values()])},
    "DPR training files": lambda: {"q.json": dpr()},
    "Tevatron": lambda: {"q.jsonl": tevatron()},
    "SQuAD": lambda: {"q.json": squad("v1.1")},
    "SQuAD 2.0": lambda: {"q.json": squad("v2.0")},
    "HotpotQA and 2WikiMultihopQA": lambda: {"q.json": hotpot()},
    "2WikiMultihopQA": lambda: {"q.json": hotpot(two_wiki=True)},
    "MuSiQue": lambda: {"q.jsonl": musique()},
    "PopQA": lambda: {"q.tsv": popqa()},
    "KILT": lambda: {"q.jsonl": kilt(), "corpus.jsonl": kilt_source()},
    "FEVER": lambda: {"q.jsonl": fever(), "corpus.jsonl": fever_pages()},
    "MS MARCO question answering": lambda: {"q.jsonl": msmarco()},
    "MS MARCO, the release's columns": lambda: {"q.json": msmarco_columns()},
    "FlashRAG questions": lambda: {
        "q.jsonl": lines(
            *({"id": k, "question": q, "golden_answers": a, "metadata": {}} for k, (q, a) in ASKED.items())
        )
    },
    "a pair of .source and .target": lambda: {
        "q.source": "".join(f"{q}\n" for q, _ in ASKED.values()),
        "q.target": "".join(f"{a[0]}\t{a!r}\n" for _, a in ASKED.values()),
    },
}

_QRELS = "query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t3\t0\nq2\t2\t1\n"
# Queries without answers, and their passages.
RANKING_FILES: dict[str, Callable[[], Mapping[str, str]]] = {
    "BEIR": lambda: {
        "corpus.jsonl": lines(*({"_id": k, "title": t, "text": x, "metadata": {}} for k, (t, x) in PASSAGES.items())),
        "queries.jsonl": lines(*({"_id": k, "text": q, "metadata": {}} for k, (q, _) in ASKED.items())),
        "qrels/train.tsv": _QRELS,
        "qrels/test.tsv": _QRELS,
    },
    "MS MARCO ranking": lambda: {
        "queries.train.tsv": "".join(f"{n}\t{q}\n" for n, (q, _) in enumerate(ASKED.values(), 1)),
        "qrels.train.tsv": "1\t0\t1\t1\n2\t0\t2\t1\n",
        "collection.tsv": "".join(f"{k}\t{x}\n" for k, (_, x) in PASSAGES.items()),
    },
}

# Files of passages, likewise.
PASSAGE_FILES: dict[str, Callable[[], Mapping[str, str]]] = {
    "openbook passages": lambda: {
        "p.csv": rows([["id", "title", "text"], *([k, *p] for k, p in PASSAGES.items())], ",")
    },
    "DPR passages": lambda: {
        "psgs_w100.tsv": rows([["id", "text", "title"], *([k, x, t] for k, (t, x) in PASSAGES.items())])
    },
    "Pyserini and FlashRAG": lambda: {
        "p.jsonl": lines(*({"id": k, "contents": f'"{t}"\n{x}'} for k, (t, x) in PASSAGES.items()))
    },
    "KILT knowledge source": lambda: {"p.jsonl": kilt_source()},
    "FEVER Wikipedia pages": lambda: {"p.jsonl": fever_pages()},
    "ColBERT, MS MARCO and transformers' RAG": lambda: {
        "p.tsv": "".join(f"{k}\t{x}\t{t}\n" for k, (t, x) in PASSAGES.items())
    },
    "transformers' RAG": lambda: {"p.csv": "".join(f"{t}\t{x}\n" for t, x in PASSAGES.values())},
    "text, Markdown and HTML": lambda: {
        "folder/a.txt": PASSAGES["1"][1],
        "folder/b.md": f"# gamma\n\n{PASSAGES['2'][1]}\n\n## rivers\n\n{PASSAGES['3'][1]}\n",
        "folder/sub/c.html": "<html><head><title>omega</title></head><body><h2>king</h2>"
        f"<p>{PASSAGES['4'][1]}</p></body></html>",
    },
}


def written(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files; the path of the first, or of the folder that it is in where there is one for all."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="")
    first = next(iter(files))
    return folder / first.split("/")[0]
