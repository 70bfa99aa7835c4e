"""From questions to predictions, against loops over the generator's own logits, one unpadded context at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from openbook.batch import MISSING_ROW, Batch, Example, Retrieved
from openbook.config.evaluation import DecodeConfig
from openbook.data.collate import Collate
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.encoder_inputs import encoder_format
from openbook.data.inputs import special_ids, targets
from openbook.data.sampler import BatchPlan
from openbook.errors import OpenBookError
from openbook.inference.answering import Answering
from openbook.metrics.matching import exact_match
from openbook.metrics.prediction import Prediction
from openbook.metrics.summary import summarize
from openbook.models.contexts import ContextBuilder, null_documents
from openbook.models.generator import Generator
from openbook.models.seq2seq import load_generator
from openbook.objectives.by_name import OBJECTIVES
from openbook.retrieval.base import Retriever
from openbook.retrieval.closed_book import ClosedBookRetriever
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from tests.plain_loss import answer_logprobs
from tests.small_system import SmallSystem

MOST, N_DOCS = 7, 5
EXAMPLES = (  # five passages, padding, one passage, none at all, three
    Example("five", "what is the capital of beta ?", ("gamma", "delta epsilon"), ("p3",)),
    Example("padding", "which city ?", ("zeta eta theta iota",)),
    Example("one", "which king lives in eta ?", ("nu xi pi rho",)),
    Example("none", "who ?", ("alpha", "beta", "one two"), ("p5",)),
    Example("three", "what river flows through a b c d ?", ("two", "xi", "kappa lambda mu"), ("p1",)),
)
FOUND = {  # row -> (the index's score, the fresh one), in the index's order
    "five": {11: (0.9, 0.3), 3: (0.8, 0.9), 7: (0.7, -1.1), 23: (0.6, 1.2), 2: (0.5, 0.1)},
    "padding": {1: (0.9, 0.2), 2: (0.8, 0.1)},
    "one": {29: (0.4, 0.7)},
    "none": {},
    "three": {13: (1.1, -0.2), 31: (1.0, 0.4), 1: (0.3, 0.1)},
}


class GivenRetriever(Retriever[list[str]]):
    """Finds what it is told to."""

    temperature = 0.5

    def __init__(self, rerank: int = 0):
        self.rerank = rerank

    def represent(self, batch: Batch) -> list[str]:
        return [example.id for example in batch.examples]

    def search(self, questions: list[str], top_k: int) -> Retrieved:
        rows = torch.full((len(questions), top_k), MISSING_ROW)
        scores = torch.full((len(questions), top_k), -torch.inf)
        for number, question in enumerate(questions):
            for place, (row, (score, _)) in enumerate(list(FOUND[question].items())[:top_k]):
                rows[number, place], scores[number, place] = row, score
        return Retrieved(rows, scores)

    retrieve = search

    def score(self, questions: list[str], retrieved: Retrieved) -> torch.Tensor:
        fresh = [
            [FOUND[question][row][1] if row != MISSING_ROW else -math.inf for row in rows]
            for question, rows in zip(questions, retrieved.rows.tolist(), strict=True)
        ]
        return torch.tensor(fresh)


@dataclass
class System:
    tokenizer: Any
    generator: Generator
    corpus: Corpus
    contexts: ContextBuilder

    def answering(self, reads: str, decode: DecodeConfig | None = None, **more: Any) -> Answering:
        decode = decode or DecodeConfig()
        return Answering(
            self.generator,
            self.contexts,
            self.corpus,
            lambda texts: targets(self.tokenizer, texts, MOST),
            self.tokenizer.decode,
            reads,
            **{"n_docs": N_DOCS, "decode": replace(decode, max_tokens=decode.max_tokens or MOST), **more},
        )

    def batch(self, examples: tuple[Example, ...] = EXAMPLES, padding: str = "padding") -> Batch:
        indices = tuple(None if one.id == padding else n for n, one in enumerate(examples))
        collate = Collate(
            question_tokenizer=self.tokenizer,
            question_format=encoder_format(self.tokenizer, "joined"),
            generator_tokenizer=self.tokenizer,
            max_question_tokens=32,
            max_target_tokens=MOST,
            seed=0,
            sample_answers=False,
        )
        return collate((BatchPlan(indices, 0, 0, 0), [*examples]))

    def answers(self, reads: str, decode: DecodeConfig | None = None, exact: bool = False, **more: Any) -> Any:
        retriever: Any = ClosedBookRetriever() if reads == "closed_book" else GivenRetriever()
        found = self.answering(reads, decode, **more)(self.batch(), retriever, exact)  # type: ignore[arg-type]
        return {one.id: one for one in found}

    # The same by loops

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def logprobs(self, question: str, row: int | None, produced: list[int]) -> list[list[float]]:
        """log p(v | x, z, y_<t) [length + 1][vocab] after the start token and each produced one."""
        context = [2, *self.ids(question), 3]
        if row is not None:
            passage = self.corpus.passage(row)
            context += [*self.ids(passage.title), *self.ids(passage.text)]
        model: Any = self.generator
        logits = model.model(
            input_ids=torch.tensor([[*context, 3]]), decoder_input_ids=torch.tensor([[2, *produced]])
        ).logits[0]
        return logits.double().log_softmax(-1).tolist()

    def by_passage(self, question: str, rows: list[int | None], tokens: list[int]) -> list[list[float]]:
        """log p(y_t | x, z_k, y_<t) [n_docs][length]."""
        return [
            [step[token] for step, token in zip(self.logprobs(question, row, tokens), tokens, strict=False)]
            for row in rows
        ]

    def greedy(self, question: str, rows: list[int | None], prior: list[float], reads: str, most: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < most and tokens[-1:] != [3]:
            steps = [self.logprobs(question, row, tokens) for row in rows]
            weights = list(prior)
            if reads == "rag_sequence":  # what each passage has said of the prefix
                weights = [
                    p * math.exp(sum(step[t][token] for t, token in enumerate(tokens)))
                    for p, step in zip(prior, steps, strict=True)
                ]
            marginal = [
                sum(w * math.exp(step[-1][v]) for w, step in zip(weights, steps, strict=True))
                for v in range(len(steps[0][-1]))
            ]
            tokens.append(max(range(len(marginal)), key=marginal.__getitem__))
        return tokens


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def marginal(reads: str, prior: list[float], by_passage: list[list[float]]) -> float:
    """log p(y|x), Lewis et al. 2020, section 2.1."""
    if reads == "rag_sequence":
        return math.log(sum(p * math.exp(sum(own)) for p, own in zip(prior, by_passage, strict=True)))
    steps = zip(*by_passage, strict=True)
    return sum(math.log(sum(p * math.exp(one) for p, one in zip(prior, step, strict=True))) for step in steps)


def read_of(question: str, n_docs: int = N_DOCS) -> tuple[list[int], list[float]]:
    """Rows of the passages that are read, best fresh score first, and p(z|x)."""
    fresh = sorted(((new, row) for row, (_, new) in list(FOUND[question].items())[:n_docs]), reverse=True)
    return [row for _, row in fresh], softmax([score for score, _ in fresh])


QUESTIONS = {example.id: example for example in EXAMPLES}


@pytest.fixture(scope="module")
def system(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> System:
    tokenizer = AutoTokenizer.from_pretrained(small_system.generator)
    corpus = build_corpus(small_system.data / "passages.jsonl", {"generator": tokenizer}, tmp_path_factory.mktemp("c"))
    generator: Any = load_generator(str(small_system.generator), 0.0, 0).eval()
    with torch.no_grad():  # decided enough for passages to disagree, and to end
        generator.model.final_logits_bias[0, 3] = 2.5
        generator.model.model.shared.weight.mul_(2.0)
    return System(tokenizer, generator, corpus, ContextBuilder(corpus.tokens("generator"), special_ids(tokenizer), 80))


@pytest.mark.parametrize(
    ("reads", "how"),
    [("rag_token", "thorough"), ("rag_sequence", "greedy"), ("rag_sequence", "thorough"), ("rag_sequence", "fast")],
)
def test_answers_are_those_of_the_loops(system: System, reads: str, how: str) -> None:
    answers = system.answers(reads, DecodeConfig(rag_sequence=how))  # type: ignore[arg-type]
    assert list(answers) == ["five", "one", "none", "three"], "padding is left out"
    for name in ("five", "one", "three"):
        (rows, prior), one, question = read_of(name), answers[name], QUESTIONS[name].question
        assert [passage.id for passage in one.passages] == [f"p{row}" for row in rows]
        assert [passage.prior for passage in one.passages] == pytest.approx(prior, abs=1e-6)
        if reads == "rag_sequence" and how != "greedy":  # every passage proposes
            own = [tuple(system.greedy(question, [row], [1.0], "rag_token", MOST)) for row in rows]
            found = {}
            for tokens in dict.fromkeys(own):
                heard = [how == "thorough" or tokens == mine for mine in own]
                logprobs = system.by_passage(question, rows, list(tokens))  # type: ignore[arg-type]
                joint = [p * math.exp(sum(one)) * h for p, one, h in zip(prior, logprobs, heard, strict=True)]
                found[tokens] = math.log(sum(joint))
            tokens = list(max(found, key=found.__getitem__))
            logprob = found[tuple(tokens)]
        else:
            tokens = system.greedy(question, rows, prior, reads, MOST)  # type: ignore[arg-type]
            logprob = marginal(reads, prior, system.by_passage(question, rows, tokens))  # type: ignore[arg-type]
        by_passage = system.by_passage(question, rows, tokens)  # type: ignore[arg-type]
        assert one.prediction == system.tokenizer.decode([token for token in tokens if token != 3])
        assert one.logprob == pytest.approx(logprob, abs=1e-4)
        assert one.candidates == ((one.prediction, one.logprob),)
        shares = [
            softmax([math.log(p) + x for p, x in zip(prior, step, strict=True)])
            for step in zip(*by_passage, strict=True)
        ]
        if reads == "rag_sequence":
            after = softmax([math.log(p) + sum(x) for p, x in zip(prior, by_passage, strict=True)])
            assert one.tokens == ()
        else:
            after = [sum(column) / len(tokens) for column in zip(*shares, strict=True)]
            assert "".join(token.text for token in one.tokens) == "".join(
                "(end)" if token == 3 else system.tokenizer.decode([token]) for token in tokens
            )
            assert len(one.tokens) == len(tokens)
            for token, share in zip(one.tokens, shares, strict=True):
                assert token.weights == pytest.approx(share, abs=1e-4)
                assert sum(token.weights) == pytest.approx(1, abs=1e-5)
        assert [passage.posterior for passage in one.passages] == pytest.approx(after, abs=1e-4)
        assert sum(passage.prior for passage in one.passages) == pytest.approx(1, abs=1e-5)
        assert sum(passage.posterior for passage in one.passages) == pytest.approx(1, abs=1e-5)


def test_the_passages_disagree_enough_for_these_tests(system: System) -> None:
    """Otherwise prior and posterior, or the two likelihoods, could be taken for each other unseen."""
    for name in ("five", "three"):
        one, other = (system.answers(reads)[name] for reads in ("rag_token", "rag_sequence"))
        assert max(abs(passage.prior - passage.posterior) for passage in one.passages) > 0.01
        assert abs(one.gold_logprob - other.gold_logprob) > 0.01
        assert len(one.tokens) > 1


def test_a_closed_book_reads_the_question_alone(system: System) -> None:
    for name, one in system.answers("closed_book").items():
        tokens = system.greedy(QUESTIONS[name].question, [None], [1.0], "rag_token", MOST)
        (own,) = system.by_passage(QUESTIONS[name].question, [None], tokens)
        assert one.prediction == system.tokenizer.decode([token for token in tokens if token != 3])
        assert one.logprob == pytest.approx(sum(own), abs=1e-4)
        assert (one.passages, one.tokens, one.answer_hits, one.gold_hits) == ((), (), (), ())
        assert one.closed_book_logprob is None, "there is nothing to compare it with"
        assert one.gold_logprob == pytest.approx(max(gold_logprobs(system, name, "rag_token", [None], [1.0])), abs=1e-4)


def gold_logprobs(system: System, name: str, reads: str, rows: list[Any], prior: list[float]) -> list[float]:
    example = QUESTIONS[name]
    return [
        marginal(reads, prior, system.by_passage(example.question, rows, [*system.ids(answer), 3]))
        for answer in example.answers
    ]


@pytest.mark.parametrize("reads", ["rag_token", "rag_sequence"])
def test_gold_answers_are_as_likely_as_in_training(system: System, reads: str) -> None:
    best = []
    for name, one in system.answers(reads).items():
        alone = gold_logprobs(system, name, "rag_token", [None], [1.0])
        assert one.closed_book_logprob == pytest.approx(max(alone), abs=1e-4)
        if name == "none":
            assert one.gold_logprob is None
            continue
        gold = gold_logprobs(system, name, reads, *read_of(name))
        assert one.gold_logprob == pytest.approx(max(gold), abs=1e-4)
        best += [(gold.index(max(gold)), alone.index(max(alone)))]
        # The training path, with the likeliest answer alone as the label.
        (_, answer) = max(zip(gold, QUESTIONS[name].answers, strict=True))
        (_, answer_alone) = max(zip(alone, QUESTIONS[name].answers, strict=True))
        for objective, text, logprob in (
            (reads, answer, one.gold_logprob),
            ("closed_book", answer_alone, one.closed_book_logprob),
        ):
            batch = system.batch((replace(QUESTIONS[name], answers=(text,)),))
            rows, scores = null_documents(batch), torch.zeros(1, 1)
            if objective != "closed_book":
                rows, prior = torch.tensor([read_of(name)[0]]), read_of(name)[1]
                scores = torch.tensor([prior]).log()
            logprobs = answer_logprobs(system.generator, batch, rows, system.contexts).detach()
            assert logprob == pytest.approx(
                -float(OBJECTIVES[objective](logprobs, scores, batch.target_mask)), abs=1e-4
            )
    assert any(place for places in best for place in places), "the best answer is not always the first"


def test_utility_is_a_difference_of_known_likelihoods(system: System) -> None:
    answers = system.answers("rag_token")
    known = [one for one in answers.values() if one.id != "none"]
    nats = [one.gold_logprob - one.closed_book_logprob for one in known]
    summary = summarize(list(answers.values()))
    assert summary["utility"] == pytest.approx(sum(nats) / 3)
    assert summary["utility_positive"] == pytest.approx(sum(value > 0 for value in nats) / 3)
    without = system.answers("rag_token", utility=False)
    assert [one.closed_book_logprob for one in without.values()] == [None] * 4
    assert [one.gold_logprob for one in without.values()] == [None] * 4, "nothing is scored that is not asked for"
    assert "utility" not in summarize(list(without.values()))


def test_a_question_without_passages_is_a_miss_that_says_nothing(system: System) -> None:
    for reads, how in (("rag_token", "fast"), *(("rag_sequence", how) for how in ("thorough", "fast", "greedy"))):
        one = system.answers(reads, DecodeConfig(rag_sequence=how))["none"]  # type: ignore[arg-type]
        assert (one.prediction, one.logprob, one.candidates, one.tokens, one.passages) == ("", None, (), (), ())
        assert one.exact_match == 0.0 and not any(one.hits)
        # and it counts as one: what was looked for and not found is not "not measured"
        assert one.gold_hits and not any(one.gold_hits)
        assert one.answer_hits and not any(one.answer_hits)
    summary = summarize(list(system.answers("rag_token").values()))
    assert summary["gold_recall_at_20"] == pytest.approx(2 / 3), "of the questions five, none and three"


@pytest.mark.parametrize("reads", ["rag_token", "rag_sequence", "closed_book"])
@pytest.mark.parametrize("beams", [1, 3])
def test_neighbours_in_a_batch_change_nothing(system: System, reads: str, beams: int) -> None:
    decode = DecodeConfig(beams=beams, n_best=beams)
    together = system.answers(reads, decode)
    for name in ("five", "one", "none", "three"):
        retriever: Any = ClosedBookRetriever() if reads == "closed_book" else GivenRetriever()
        (alone,) = system.answering(reads, decode)(system.batch((QUESTIONS[name],)), retriever)
        _same(together[name].to_json(), alone.to_json())


def _same(one: Any, other: Any) -> None:
    if isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
    elif isinstance(one, list | dict):
        assert len(one) == len(other)
        assert not isinstance(one, dict) or list(one) == list(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            _same(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize("n_docs", [2, 23])
def test_any_number_of_passages_is_read(system: System, n_docs: int) -> None:
    for reads in ("rag_token", "rag_sequence"):
        for name, one in system.answers(reads, n_docs=n_docs).items():
            rows, prior = read_of(name, n_docs)
            assert [passage.id for passage in one.passages] == [f"p{row}" for row in rows]
            assert [passage.prior for passage in one.passages] == pytest.approx(prior, abs=1e-6)
            assert len(one.hits) == 20
            if rows:
                assert one.gold_logprob == pytest.approx(max(gold_logprobs(system, name, reads, rows, prior)), abs=1e-4)
                assert all(len(token.weights) == len(rows) for token in one.tokens)


def test_the_indexs_order_is_kept_where_it_is_asked_for(system: System) -> None:
    """rerank -1: weighted by fresh scores but read in the index's order; what is told is sorted by prior all the same,
    and so are the tokens' shares."""
    fresh, kept = (
        {one.id: one for one in system.answering("rag_token")(system.batch(), GivenRetriever(rerank))}  # type: ignore[arg-type]
        for rerank in (0, -1)
    )
    for name in ("five", "three"):
        _same(
            kept[name].to_json() | {"hits": [], "answer_hits": [], "gold_hits": []},
            fresh[name].to_json() | {"hits": [], "answer_hits": [], "gold_hits": []},
        )
    assert fresh["five"].gold_hits.index(True) == 1 == kept["five"].gold_hits.index(True)
    assert fresh["three"].gold_hits.index(True) == 1 and kept["three"].gold_hits.index(True) == 2
    exact = system.answers("rag_token", exact=True)["five"]
    rows = list(FOUND["five"])
    assert [passage.id for passage in exact.passages] == [f"p{row}" for row in rows]
    priors = softmax([FOUND["five"][row][0] / GivenRetriever.temperature for row in rows])
    assert [passage.prior for passage in exact.passages] == pytest.approx(priors, abs=1e-6)


def test_answers_are_as_long_as_they_may_and_must_be(system: System) -> None:
    for reads in ("rag_token", "rag_sequence"):
        for how in ("thorough", "fast", "greedy"):
            limits = [DecodeConfig(max_tokens=2, rag_sequence=how), DecodeConfig(min_tokens=6, rag_sequence=how)]  # type: ignore[arg-type]
            short, long = (
                replace(system.answering(reads, limit), detokenize=lambda ids: " ".join(map(str, ids)))(
                    system.batch(),
                    GivenRetriever(),  # type: ignore[arg-type]
                )
                for limit in limits
            )
            assert {len(one.prediction.split()) for one in short} <= {0, 1, 2}
            assert {len(one.prediction.split()) for one in long if one.id != "none"} <= {5, 6, 7}, "end not counted"
    tokens = system.answers("rag_token", DecodeConfig(max_tokens=2))["five"].tokens
    assert len(tokens) <= 2
    assert len(system.answers("rag_token", DecodeConfig(min_tokens=6))["five"].tokens) >= 6


def test_more_beams_find_no_less(system: System) -> None:
    for reads in ("rag_token", "rag_sequence", "closed_book"):
        one, many = (system.answers(reads, DecodeConfig(beams=beams, n_best=min(beams, 3))) for beams in (1, 13))
        for name in one:
            assert len(one[name].candidates) <= 1
            if one[name].logprob is None:
                continue
            assert many[name].logprob >= one[name].logprob - 1e-5
            scores = [logprob for _, logprob in many[name].candidates]
            assert scores == sorted(scores, reverse=True)
            assert many[name].candidates[0] == (many[name].prediction, many[name].logprob)
            assert len({text for text, _ in many[name].candidates}) == len(scores) == 3


LABELS = ("xi", "nu pi", "rho")


def test_labels_are_told_apart_by_their_first_token(system: System) -> None:
    chosen = {}
    for reads in ("rag_token", "rag_sequence", "closed_book"):
        for name, one in system.answers(reads, task="labels", labels=LABELS).items():
            rows, prior = read_of(name) if reads != "closed_book" else ([None], [1.0])
            if not rows:
                assert (one.candidates, one.logprob) == ((), None)
                continue
            steps = [system.logprobs(QUESTIONS[name].question, row, [])[0] for row in rows]  # type: ignore[arg-type]
            wanted = {
                label: math.log(sum(p * math.exp(s[system.ids(label)[0]]) for p, s in zip(prior, steps, strict=True)))
                for label in LABELS
            }
            assert dict(one.candidates) == pytest.approx(wanted, abs=1e-4)
            assert [label for label, _ in one.candidates] == sorted(LABELS, key=lambda label: -wanted[label])
            assert one.label == one.prediction == max(wanted, key=wanted.__getitem__)
            assert one.logprob == pytest.approx(max(wanted.values()), abs=1e-4)
            assert one.exact_match == exact_match(one.label, QUESTIONS[name].answers)
            if reads == "rag_token":
                joint = [math.log(p) + s[system.ids(one.label)[0]] for p, s in zip(prior, steps, strict=True)]
                assert [len(token.weights) for token in one.tokens] == [len(rows)]
                assert one.tokens[0].weights == pytest.approx(softmax(joint), abs=1e-4)
            chosen[reads, name] = one.label
    assert len(set(chosen.values())) > 1, "there is something to choose"


def test_label_accuracies_come_out(system: System) -> None:
    found = [one for one in system.answers("rag_token", task="labels", labels=LABELS).values() if one.passages]
    worst = [replace(one, answers=(one.candidates[-1][0],)) for one in found]
    right = [replace(one, answers=(one.label,)) for one in found]
    for records, accuracy in ((right, 1.0), (worst, 0.0)):
        assert summarize(records, "labels", labels=LABELS)["label_accuracy"] == accuracy
    # Of the first two labels, one is likelier; a question for the third is not asked about.
    pair = [max((p, text) for text, p in one.candidates if text in LABELS[:2])[1] for one in found]
    records = [replace(one, answers=(text,)) for one, text in zip(found, pair, strict=True)]
    records[0] = replace(records[0], answers=tuple(set(LABELS[:2]) - {pair[0]}))
    records.append(replace(found[0], answers=(LABELS[2],)))
    assert summarize(records, "labels", labels=LABELS)["label_accuracy_2way"] == pytest.approx(2 / 3)


def test_labels_that_begin_alike_are_refused(system: System, small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"begin with the same token \(evaluate.labels\): got nu pi, nu xi, rho"):
        system.answers("rag_token", task="labels", labels=("nu pi", "nu xi", "rho"))
    config = small_system.config(
        tmp_path / "run", "evaluate.task=labels", "evaluate.labels=a b,a c", "objective=closed_book"
    )
    with pytest.raises(OpenBookError, match="begin with the same token"):  # before training
        setup_models.rag_module(config, setup_data.parts(config))


def test_patterns_are_matched_and_have_no_likelihood(system: System) -> None:
    plain = system.answers("rag_token")["five"]
    first = plain.prediction.split()[0]
    patterns = (f"{first[:-1]}.", "capital.{3,9}beta")
    batch = system.batch((replace(QUESTIONS["five"], answers=patterns, positive_ids=()),))
    (one,) = system.answering("rag_token", regex=True)(batch, GivenRetriever())  # type: ignore[arg-type]
    assert (one.exact_match, one.f1, one.gold_logprob, one.closed_book_logprob) == (1.0, None, None, None)
    assert one.prediction == plain.prediction and one.logprob == pytest.approx(plain.logprob, abs=1e-5)
    for passage in one.passages:
        assert passage.relevant == ("of beta" in passage.text or f" {first[:-1]}" in passage.text), passage
    assert json.loads(json.dumps(one.to_json(), allow_nan=False))["f1"] is None


def test_every_line_is_json_and_comes_back(system: System) -> None:
    for reads in ("rag_token", "rag_sequence", "closed_book"):
        for decode in (DecodeConfig(), DecodeConfig(beams=3, n_best=3)):
            for more in ({}, {"task": "labels", "labels": LABELS}):
                for one in system.answers(reads, decode, **more).values():
                    line = json.dumps(one.to_json(), allow_nan=False)
                    assert Prediction.from_json(json.loads(line)) == one


def test_answering_leaves_training_as_it_was(system: System) -> None:
    model: Any = system.generator
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        for reads in ("rag_token", "rag_sequence", "closed_book"):
            system.answers(reads, DecodeConfig(beams=2))
        assert all(part.training == training for part in model.modules())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()
    loss = answer_logprobs(model, system.batch(), torch.tensor([[3, 5]] * 5), system.contexts).sum()
    loss.backward()  # what evaluation leaves behind can still be trained
    assert model.model.lm_head.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_a_batch_of_padding_alone_answers_nothing(system: System) -> None:
    batch = system.batch((QUESTIONS["padding"], QUESTIONS["padding"]))
    assert system.answering("rag_token")(batch, GivenRetriever()) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["decode.min_tokens=9", "decode.max_tokens=8"],
            r"answers of no possible length \(decode.min_tokens\): got 9, expected at most 8",
        ),
        (["decode.min_tokens=9", "data.max_target_tokens=7"], r"\(decode.min_tokens\): got 9, expected at most 7"),
        (
            ["decode.n_best=3", "decode.beams=2"],
            r"more answers than beams \(decode.n_best\): got 3, expected at most decode.beams = 2. Raise decode.beams",
        ),
        (["objective=rag_sequence", "decode.rag_sequence=greedy", "decode.n_best=2"], "more answers than beams"),
        (
            ["objective=rag_sequence", "decode.rag_sequence=greedy", "decode.beams=2"],
            r"a greedy search has one beam \(decode.beams\): got 2, "
            "expected 1, or decode.rag_sequence=thorough or fast",
        ),
        (
            ["evaluate.task=labels", "evaluate.labels=one"],
            r"no labels to choose from \(evaluate.labels\): got 'one', expected two labels or more",
        ),
        (
            ["evaluate.labels=one,two"],
            r"labels that this task ignores \(evaluate.labels\): got .*, expected nothing, or evaluate.task=labels",
        ),
        (["decode.beams=0", "decode.n_best=0"], r"\(decode.beams\): got 0, expected more than 0"),
        (["evaluate.n_docs=-1"], r"\(evaluate.n_docs\): got -1, expected 0 or more"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    small_system: SmallSystem, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(OpenBookError, match=message):
        small_system.config(tmp_path / "run", *words)


def test_settings_reach_the_answers(small_system: SmallSystem, tmp_path: Path) -> None:
    config = small_system.config(
        tmp_path / "run",
        "evaluate.n_docs=11",
        "decode.beams=3",
        "decode.n_best=2",
        "evaluate.utility=false",
        "objective=emdr2",
        "evaluate.task=labels",
        "evaluate.labels=xi, nu",
    )
    module: Any = setup_models.rag_module(config, setup_data.parts(config))
    answering = module.answering
    assert (answering.likelihood, answering.n_docs, module.n_docs, answering.utility) == ("rag_token", 11, 3, False)
    assert (answering.decode.beams, answering.decode.n_best, answering.labels) == (3, 2, ("xi", "nu"))
    assert answering.decode.max_tokens == config.data.max_target_tokens
    assert answering.targets(["alpha"]).tolist()[0][-1] == module.generator.eos_token_id
    config = small_system.config(tmp_path / "run", "decode.max_tokens=3")
    module = setup_models.rag_module(config, setup_data.parts(config))
    assert (module.answering.n_docs, module.answering.decode.max_tokens) == (3, 3)


def test_pooled_candidates_may_be_more_than_beams(small_system: SmallSystem, tmp_path: Path) -> None:
    words = ("objective=rag_sequence", "decode.beams=1", "decode.n_best=3")
    assert small_system.config(tmp_path / "run", *words).decode.n_best == 3
