"""The paper's experiments: each takes a step with tiny models, from a few lines of the files that it names."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from openbook.commands.train import train
from openbook.config.load import list_experiments, load_experiment
from openbook.setup.prepare import prepare
from tests.data.readers.samples import hotpot, lines, musique, rows
from tests.small_system import SmallSystem, column

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = list_experiments(Path("nowhere"))
NAMES = [name for name in ALL if name.startswith("paper/")]
MULTIHOP = [name for name in ALL if name.startswith("multihop/")]
QA = [
    ("what is the capital of alpha ?", ["beta", "beta city"]),
    ("what is the capital of gamma ?", ["delta"]),
    ("who lives in sigma ?", ["the king"]),
]
PASSAGES = [
    ("alpha", "the capital of alpha is beta ."),
    ("gamma", "the capital of gamma is delta ."),
    ("kappa", "a river flows through kappa ."),
    ("omega", "the king of omega lives in sigma ."),
    ("lambda", "a river flows through lambda ."),
    ("sigma", "the capital of sigma is omega ."),
]


def dpr_file(answers: list[list[str]]) -> str:
    return json.dumps(
        [
            {
                "dataset": "x",
                "question": question,
                "answers": gold,
                "positive_ctxs": [{"title": PASSAGES[n][0], "text": PASSAGES[n][1], "psg_id": str(n + 1)}],
                "negative_ctxs": [],
                "hard_negative_ctxs": [],
            }
            for n, ((question, _), gold) in enumerate(zip(QA, answers, strict=True))
        ]
    )


def files() -> dict[str, str]:
    """Every file that the experiments name, by its name."""
    table = rows([[question, repr(answers)] for question, answers in QA])
    patterns = [["bet(a|ta)"], [r"delt\w"], ["the (king|queen)"]]
    marco = [
        {
            "answers": answers,
            "passages": [{"is_selected": 1, "passage_text": "another text .", "url": "u"}],
            "query": question,
            "query_id": n,
            "query_type": "LOCATION",
            "wellFormedAnswers": [f"it is {answers[0]} ."] if n else [],
        }
        for n, (question, answers) in enumerate(QA)
    ]
    columns = {key: {str(n): one[key] for n, one in enumerate(marco)} for key in marco[0]}
    columns["wellFormedAnswers"]["0"] = "[]"
    claims = [
        {
            "id": n,
            "verifiable": "VERIFIABLE",
            "label": label,
            "claim": f"{PASSAGES[n][0]} is old .",
            "evidence": [[[1, 2, "Page_of_another_dump", 0]]],
        }
        for n, label in enumerate(("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"))
    ]
    corpus = csv_of([["id", "text", "title"], *([str(n), text, title] for n, (title, text) in enumerate(PASSAGES, 1))])
    jeopardy = lines(*({"answer": answers[0], "question": question} for question, answers in QA))
    found = {
        "psgs_w100.tsv": corpus,
        "curatedtrec-test.qa.csv": rows([[q, repr(p)] for (q, _), p in zip(QA, patterns, strict=True)]),
    }
    found |= {f"nq-{split}.qa.csv": table for split in ("train", "dev", "test")}
    found |= {f"trivia-{split}.qa.csv.gz": table for split in ("train", "dev", "test")}
    found |= {f"biencoder-webquestions-{split}.json.gz": dpr_file([a for _, a in QA]) for split in ("train", "dev")}
    found |= {f"biencoder-curatedtrec-{split}.json.gz": dpr_file(patterns) for split in ("train", "dev")}
    found |= {f"{split}_v2.1.json.gz": json.dumps(columns) for split in ("train", "dev")}
    found |= {f"jeopardy-{split}.jsonl": jeopardy for split in ("train", "dev", "test")}
    found |= {name: lines(*claims) for name in ("train.jsonl", "paper_dev.jsonl", "paper_test.jsonl")}
    hops = {"hotpot_{}_v1.1.json": hotpot(), "hotpot_{}_distractor_v1.json": hotpot()}
    hops |= {"2wiki-{}.json": hotpot(two_wiki=True), "musique_ans_v1.0_{}.jsonl": musique()}
    found |= {name.format(split): content for name, content in hops.items() for split in ("train", "dev")}
    return found | {"webquestions-test.qa.csv": table}


def csv_of(table: list[list[str]]) -> str:
    """As DPR's passages are written: the text between quotation marks."""
    head, *body = table
    return "\t".join(head) + "\n" + "".join(f'{one}\t"{text}"\t{title}\n' for one, text, title in body)


def tiny(system: SmallSystem) -> list[str]:
    """What stands in for the paper's models and machines; all else is as the experiment has it."""
    return [
        f"retriever.question_encoder={system.encoder}",
        f"retriever.passage_encoder={system.encoder}",
        f"generator.model={system.generator}",
        *("data.max_passage_tokens=64", "data.max_context_tokens=80", "data.max_question_tokens=32"),
        *("data.max_target_tokens=12", "trainer.devices=1", "trainer.batch_size=2", "trainer.max_epochs=0"),
        *("trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=fp32", "wandb.mode=disabled"),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_system: SmallSystem) -> Path:
    """A folder with the files, and with the runs that others start from."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "paper_data").mkdir()
    for name, content in files().items():
        raw = content.encode()
        (folder / "paper_data" / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENBOOK_RUN_DIR", "")
        for objective in ("rag_token", "rag_sequence"):
            train(load_experiment(f"paper/nq/{objective}", [*tiny(small_system), "run.name=first"]))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_step(
    name: str,
    place: Path,
    small_system: SmallSystem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    more = ["decode.max_tokens=12"] if "msmarco" in name or "jeopardy" in name else []
    config = load_experiment(name, [*tiny(small_system), *more])
    path = Path("runs") / name / "first" if "/nq/" in name else train(config)
    assert path.parent == Path("runs") / name
    summary = json.loads((path / "summary.json").read_text())
    assert summary["experiment"] == name and summary["steps"] == 1 and summary["index"]["factory"] == "HNSW128"
    assert all(math.isfinite(loss) for loss in column(path, "train/nll").values())
    said = " ".join(capsys.readouterr().out.split())
    if "webquestions" in name or "curatedtrec" in name:
        for part in ("encoders start", "the generator starts"):
            assert f"{part} from runs/paper/nq/{name.rpartition('/')[2]}/first" in said
    measured = {"msmarco": "rouge_l", "jeopardy": "q_bleu_1", "fever": "label_accuracy"}.get(
        name.split("/")[1], "exact_match"
    )
    assert 0 <= summary["test"][measured] <= 1


@pytest.mark.parametrize("name", MULTIHOP)
def test_a_step_of_several_hops(
    name: str, place: Path, small_system: SmallSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passages that the questions carry are the corpus, and all that are retrieved are read at once."""
    monkeypatch.chdir(place)
    path = train(load_experiment(name, [*tiny(small_system), "retriever.n_docs=2"]))
    summary, config = json.loads((path / "summary.json").read_text()), (path / "config.yaml").read_text()
    assert summary["steps"] == 1 and "reads: all" in config and "objective: emdr2" in config
    assert math.isfinite(next(iter(column(path, "train/nll").values())))
    assert 0 <= summary["test"]["recall_at_1"] <= 1 and summary["index"]["n_passages"] == 4


def test_what_is_trained_on(place: Path, small_system: SmallSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuratedTREC's patterns become what they match; MS MARCO gives well-formed answers, Jeopardy the question."""
    monkeypatch.chdir(place)

    def trained(dataset: str) -> list[tuple[str, tuple[str, ...]]]:
        config = load_experiment(f"paper/{dataset}/rag_token", [*tiny(small_system), "decode.max_tokens=12"])
        return [(one.question, one.answers) for one in prepare(config).questions.questions["train"]]

    assert [answers for _, answers in trained("curatedtrec")] == [("beta",), ("delta",)]
    assert trained("msmarco") == [(QA[1][0], ("it is delta .",)), (QA[2][0], ("it is the king .",))]
    assert trained("jeopardy")[0] == ("beta", (QA[0][0],))
    assert [answers for _, answers in trained("fever")] == [("SUPPORTS",), ("REFUTES",), ("NOT ENOUGH INFO",)]
