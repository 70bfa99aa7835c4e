"""The parts of the page: examples, marks, the header, the time, the data of the search, the command that repeats."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest

from openbook.config.load import load_experiment, to_yaml
from openbook.metrics.bootstrap import wilson
from openbook.metrics.prediction import Prediction, ReadPassage, TokenProvenance
from openbook.metrics.summary import HELD_OUT
from openbook.reporting.page.cards import example, outcomes
from openbook.reporting.page.examples import chosen_examples, entity
from openbook.reporting.page.groups import groups
from openbook.reporting.page.header import counted, header
from openbook.reporting.page.marking import answer_spans, pieces
from openbook.reporting.page.questions import heat_map, question_data, script_json
from openbook.reporting.page.repeat import repeat
from openbook.reporting.page.timing import time_bar
from tests.reporting.page.test_why import ALL, HIT, MISS, READ_WRONGLY, RIGHT

HOSTILE = "</script><!-- \u2028 & \ud800"


def about(country: str, right: bool, relation: str) -> Prediction:
    return replace(
        RIGHT if right else READ_WRONGLY,
        id=f"{country} {relation} {right}",
        question=f"What is the {relation} of {country}?",
        relation=relation,
        passages=(HIT._replace(title=country), MISS),
    )


@pytest.mark.parametrize(("n_right", "n_wrong", "expected"), [(60, 60, (6, 6)), (3, 60, (3, 9)), (60, 1, (11, 1))])
def test_examples_are_wrong_first_and_about_different_things(
    n_right: int, n_wrong: int, expected: tuple[int, int]
) -> None:
    """The file has five questions in a row about each country, right and wrong ones about the same countries."""
    relations = ("capital", "coast", "currency", "flag", "anthem")
    file = [
        about(f"Land {n // 5}", right, relations[n % 5])
        for right, n_questions in ((True, n_right), (False, n_wrong))
        for n in range(n_questions)
    ]
    chosen = chosen_examples(file)
    rights = [bool(one.exact_match) for one in chosen]
    assert (sum(rights), len(rights) - sum(rights)) == expected
    assert rights == sorted(rights), "wrong ones first"
    assert len({one.id for one in chosen}) == 12
    assert len({entity(one) for one in chosen}) >= 10
    assert len({one.relation for one in chosen}) == 5


def test_an_entity_is_the_relevant_title_or_one_that_is_asked_for() -> None:
    assert entity(RIGHT) == "togo"
    assert entity(replace(RIGHT, question="The flag of MALI?", passages=(MISS,))) == "mali"
    assert entity(replace(RIGHT, question="Who?", passages=(MISS,))) == "who?"


def test_answers_are_marked_as_whole_words() -> None:
    text = "Art, party and the art of ART."
    assert [text[start:end] for start, end in answer_spans(text, ["art"])] == ["Art", "art", "ART"]
    assert answer_spans("New York City", ["New York", "York City"]) == [(0, 13)]
    assert answer_spans("a (b) c", ["(b)", ""]) == [(2, 5)]
    assert answer_spans("in 1999 and 2004", [r"\d{4}"], regex=True) == [(3, 7), (12, 16)]
    assert answer_spans("x" * 50, ["(x+x+)+y", "("], regex=True) == [], "neither is waited for, or an error"
    assert pieces("abc", [(1, 2)]) == [("a", False), ("b", True), ("c", False)]
    assert pieces("", []) == []


def rates(n: int, exact: float, **more: Any) -> dict[str, Any]:
    return {"exact_match": exact, "f1": exact, "recall_at_1": 0.5, "n_questions": n} | more


def test_header_has_intervals_and_unseen_phrasings_beside() -> None:
    summary = {
        "before_training": rates(40, 0.25, by_phrasing={HELD_OUT: rates(8, 0.125)}),
        "test": rates(
            40, 0.5, intervals={"exact_match": [0.35, 0.65]}, by_phrasing={HELD_OUT: rates(8, 0.375), "trained": {}}
        ),
        "improved": {"exact_match": {"interval": [0.1, 0.4]}, "f1": {"interval": [-0.1, 0.6]}},
    }
    exact, f1, _ = header(summary, [])
    assert (exact.before.rate, exact.after.rate, exact.after.interval) == ("25.0 %", "50.0 %", "35.0 to 65.0")
    assert (exact.change.rate, exact.change.interval, exact.better) == ("+25.0", "+10.0 to +40.0", 1)
    assert f1.better == 0, "its interval holds 0"
    assert exact.unseen is not None and [one.rate for one in exact.unseen] == ["12.5 %", "37.5 %"]


def test_both_numbers_of_questions_are_said() -> None:
    both = {HELD_OUT: rates(80, 0.5), "trained": rates(80, 0.5)}
    assert counted({"test": rates(80, 0.5, by_phrasing=both)}) == "80 questions and 80 in phrasings never trained on"
    assert counted({"test": rates(80, 0.5, by_phrasing={HELD_OUT: rates(80, 0.5)})}) == "80 questions"
    assert counted({}) == ""


def test_intervals_of_older_runs_come_from_the_predictions() -> None:
    unseen = [replace(one, phrasing=HELD_OUT) for one in (*[RIGHT] * 3, *[READ_WRONGLY] * 5)]
    seen = [RIGHT] * 12 + [READ_WRONGLY] * 8
    summary = {"test": rates(20, 0.6, by_phrasing={HELD_OUT: rates(8, 0.375)})}
    exact = header(summary, [*seen, *unseen])[0]
    low, high = (float(text) for text in exact.after.interval.split(" to "))
    assert 35 <= low < 60 < high <= 85
    assert exact.unseen is not None and exact.unseen[1].interval
    assert header({"test": rates(20, 0.6)}, [])[0].after.interval == ""


def test_no_interval_claims_certainty_where_all_questions_are_alike() -> None:
    summary = {"test": rates(7, 0.0, intervals={"exact_match": [0.0, 0.0], "f1": [0.0, 0.0]})}
    exact, f1, _ = header(summary, [])
    assert exact.after.interval == f"0.0 to {100 * wilson(0, 7)[1]:.1f}"
    assert f1.after.interval == ""


def test_time_bar_adds_up() -> None:
    stages = {"build": 10.0, "warmup": 0.0, "index": 20.0, "train": 50.0, "refresh": 10.0, "validation": 2.0, "test": 3}
    parts = time_bar({"seconds": {"total": 100.0}, "stages": stages})
    assert [round(part.share, 2) for part in parts] == [0.1, 0.2, 0.5, 0.1, 0.02, 0.03, 0.05]
    assert parts[-1].name == "in no stage" and sum(part.share for part in parts) == pytest.approx(1)
    older = time_bar({"seconds": {"total": 60.0, "setup": 15.0, "train": 45.0, "refresh": 0.0, "evaluate": 0.0}})
    assert [(part.name, part.share) for part in older] == [
        ("build and warm-up", 0.25),
        ("training and validation", 0.75),
    ]
    assert time_bar({}) == []


def test_the_search_holds_every_question_wrong_ones_first() -> None:
    tokens = (TokenProvenance("lo", (0.25, 0.75)), TokenProvenance("(end)", (0.996, 0.004)))
    first = replace(RIGHT, tokens=tokens)
    written, left_out = question_data([first, *ALL[1:]], 10**6)
    data = json.loads(written)
    assert left_out == [] and len(data["questions"]) == len(ALL)
    assert [one["o"] for one in data["questions"]] == [*["read_wrongly", "not_first"], *["not_retrieved"] * 2, "right"]
    one = data["questions"][-1]
    assert (one["t"], one["c"], one["n"]) == ([["lo", 25, 75], ["(end)", 100, 0]], 2, 2)
    text, prior, posterior, relevant, places = one["p"][0]
    title, passage = data["texts"][text]
    assert (title, prior, posterior, relevant) == ("Togo", 70, 60, 1)
    assert passage[slice(*places)] == "Lomé"
    assert len(data["texts"]) == 2, "each text once"


def test_places_are_counted_as_javascript_counts() -> None:
    astral = replace(RIGHT, passages=(HIT._replace(text="\U0001f30d Lomé"),))
    assert json.loads(question_data([astral], 10**6)[0])["questions"][0]["p"][0][4] == [3, 7]


def test_data_cannot_end_its_script() -> None:
    hostile = replace(
        RIGHT, question=HOSTILE, answers=(HOSTILE,), passages=(HIT._replace(title=HOSTILE, text=HOSTILE),)
    )
    written, _ = question_data([hostile], 10**6)
    assert not set("<>&\u2028\u2029\ud800") & set(written)
    assert json.loads(written)["questions"][0]["q"] == HOSTILE.replace("\ud800", "?")
    assert json.loads(script_json({"a": HOSTILE[:-1]})) == {"a": HOSTILE[:-1]}


@pytest.mark.parametrize("budget", [0, 1500, 3000, 5000])
def test_what_does_not_fit_is_counted(budget: int) -> None:
    many = [replace(READ_WRONGLY, id=str(n), passages=(HIT._replace(text=f"{n} " * 40),)) for n in range(20)]
    written, left_out = question_data(many, budget)
    data = json.loads(written)
    assert len(written.encode()) <= max(budget, 300)
    n_here, n_full = len(data["questions"]), sum("p" in one for one in data["questions"])
    assert bool(left_out) and (n_here < 20 or n_full < 20)
    counts = [int(re.findall(r"\d+", text)[0]) for text in left_out]
    assert counts == [n for n in (20 - n_here, n_here - n_full) if n]


def test_a_wide_heat_map_is_summed_up() -> None:
    rows, columns = heat_map([TokenProvenance("a", (0.1,) * 10)], 10)
    assert columns == 6 and rows == [("a", [0.1] * 6 + [pytest.approx(0.4)])]
    assert heat_map([TokenProvenance("a", (0.25, 0.75))], 2) == ([("a", [0.25, 0.75])], 2)


def test_what_is_cut_is_said() -> None:
    many = replace(
        READ_WRONGLY, question="w" * 600, answers=("a",) * 23, tokens=(TokenProvenance("t", (0.6, 0.4)),) * 70
    )
    one = json.loads(question_data([many], 10**6)[0])["questions"][0]
    assert len(one["q"]) == 500 and one["q"][-1] == "…" and one["a"][-1] == "… 3 more"
    assert len(one["t"]) == 65 and one["t"][-1] == ["… 6 more"]


def test_a_card_unfolds_what_explains_the_answer() -> None:
    passages = tuple(ReadPassage(f"p{n}", f"T{n}", 0.1, 0.1, n == 4, "Lomé") for n in range(6))
    passages = (passages[0]._replace(prior=0.5), passages[1]._replace(posterior=0.5), *passages[2:])
    card = example(replace(READ_WRONGLY, passages=passages))
    assert [one.number for one in card.shown] == [1, 2, 5] and [one.number for one in card.folded] == [3, 4, 6]
    assert card.shown[0].pieces == [("Lomé", True)] and card.tag == "wrong: retrieved but not first"
    assert example(replace(RIGHT, passages=())).shown == []


def test_outcomes_of_seen_and_unseen() -> None:
    rows = outcomes(list(ALL), [RIGHT, READ_WRONGLY])
    assert [(row.key, row.n, row.n_unseen) for row in rows] == [
        ("right", 1, 1),
        ("not_retrieved", 2, 0),
        ("not_first", 1, 0),
        ("read_wrongly", 1, 1),
    ]
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_groups_are_limited_to_the_largest_and_lowest_first() -> None:
    after = {f"relation {n}": {"exact_match": 1 / n, "recall_at_1": 0.5, "n_questions": n} for n in range(1, 54)}
    found = groups(
        {"relation 53": {"exact_match": 0.25}}, after, [replace(READ_WRONGLY, relation="relation 53")], "relation"
    )
    assert len(found) == 40 and found[0].name == "relation 53" and found[-1].name == "relation 14"
    assert [bar.before for bar in found[0].bars] == [0.25, None]
    assert (found[0].wrong, found[1].wrong) == ({"read_wrongly": 1}, {})
    assert groups({}, {}, [], "relation") == []


@pytest.mark.parametrize("experiment", ["tiny", "rag_sequence", "closed_book"])
def test_the_command_repeats_the_configuration(experiment: str) -> None:
    words = ["seed=7", "optim.lr=2.0e-5", "retriever.n_docs=3", "evaluate.utility=false", "wandb.project=a b"]
    config = load_experiment(experiment, [*words, "run.name=mine"])
    found = repeat(to_yaml(config), "runs/x/mine")
    command = shlex.split(found.command)
    assert command[:3] == ["openbook", "train", experiment] and len(command) <= 3 + len(words)
    again = load_experiment(experiment, command[3:])
    assert replace(again, run=config.run) == config
    assert {one.key: one.value for one in found.differences}["evaluate.utility"] == "false"
    assert found.note == ""


def test_what_counts_for_the_embedded_data_is_no_default_of_other_data() -> None:
    """rag_token lists evaluate.checkpoint=last for the embedded data; with files of one's own it is chosen."""
    files = [f"data.{split}={split}.jsonl" for split in ("corpus", "train", "validation", "test")]
    config = load_experiment("rag_token", [*files, "evaluate.checkpoint=last", "optim.lr=1.0e-4"])
    command = shlex.split(repeat(to_yaml(config), "x").command)
    assert sorted(command[3:]) == sorted([*files, "evaluate.checkpoint=last", "optim.lr=0.0001"])
    assert load_experiment("rag_token", command[3:]) == config


def test_what_the_command_cannot_repeat_is_said() -> None:
    config = load_experiment("tiny", ["experiment=mine"])
    found = repeat(to_yaml(config) + "later:\n  key: 1\n", "runs/mine/1", ["objective"])
    assert "There is no experiment mine here" in found.note and "knows no later.key" in found.note
    assert "The run had objective from Python" in found.note
    assert found.command == "openbook train runs/mine/1/config.yaml run.dir= run.name="
    assert repeat("retriever: [", "x").command == "" and repeat("a: 1", "x").note.startswith("config.yaml cannot")
