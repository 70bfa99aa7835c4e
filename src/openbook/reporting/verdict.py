"""One sentence on what training was worth: better, worse or not to be told, the likely reason and what to try."""

from collections.abc import Mapping
from typing import Any

# What is told beside what training made worse or better: the first two of retrieval, and the first of answers.
_RETRIEVAL = ("recall_at_1", "recall_at_5", "recall_at_20", "mrr")
_ANSWER = ("f1", "exact_match")

FEW_TRAINING, FEW_TEST = 300, 200
READS_WRONGLY = 0.65  # agreement under which the generator hardly tells passages apart; chance is 0.5
NOT_FOUND = 0.4  # recall@20 under which most questions never see their passage


def verdict(summary: Mapping[str, Any]) -> str:
    """The last line of a run, from summary.json; empty where nothing was compared."""
    improved = summary.get("improved") or {}
    if not improved:
        return _by_validation(summary)
    worse = [name for name, one in improved.items() if one.get("worsened", one["interval"][1] < 0)]
    better = [name for name, one in improved.items() if one["improved"]]
    told = [name for name in (*_RETRIEVAL[:2], _ANSWER[0]) if name in improved]
    shown = [*worse, *told] if {*better} & {*worse, *told} else [*worse, *better, *told]
    numbers = "; ".join(_change(name, summary) for name in dict.fromkeys(shown))
    if worse:
        return f"training made it worse on the test questions: {numbers}. {_reason(summary)}"
    if any(name in better for name in _RETRIEVAL) and (any(n in better for n in _ANSWER) or "f1" not in improved):
        return f"training improved on its start: {numbers}."
    if better:
        side = "retrieval" if better[0] in _RETRIEVAL else "the answers"
        other = "the answers" if side == "retrieval" else "retrieval"
        others = [improved[name] for name in (_ANSWER if side == "retrieval" else _RETRIEVAL) if name in improved]
        rest = f" {other} did not measurably change. {_reason(summary)}" if others else ""
        if all(one["interval"] == [0, 0] for one in others):  # as of encoders that do not train: no fault to look for
            rest = f" {other} did not change." if others else ""
        return f"training improved {side}: {numbers}.{rest}"
    return f"training has not measurably improved on its start: {numbers}. {_reason(summary)}"


def _change(name: str, summary: Mapping[str, Any]) -> str:
    one = summary["improved"][name]
    low, high = one["interval"]
    before, after = (summary.get(when, {}).get(name) for when in ("before_training", "test"))
    rates = f"{before:.3f} -> {after:.3f} " if before is not None and after is not None else ""
    label = name.replace("_at_", "@").replace("_", " ").replace("f1", "F1")
    return f"{label} {rates}({one['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"


def _reason(summary: Mapping[str, Any]) -> str:
    """The likeliest reason, and what to try."""
    questions, test = summary.get("questions", {}), summary.get("test", {})
    agreement, n_train, n_test = summary.get("agreement"), questions.get("train", 0), test.get("n_questions", 0)
    if agreement is not None and agreement < READS_WRONGLY:
        return (
            "The likely reason: the generator reads wrongly; it finds the answer likelier in a relevant passage than "
            f"in another one {agreement:.0%} of the time (chance: 50 %). Try more warmup.steps, or a generator that "
            "comes trained (generator.model=FOLDER)."
        )
    if n_train < FEW_TRAINING:
        return (
            f"The likely reason: {n_train} training questions are few. Try masked spans of the corpus beside them "
            "(EXP=from_corpus, and retriever.start_from its run), or more questions."
        )
    if test.get("recall_at_20", 1.0) < NOT_FOUND:
        return (
            f"The likely reason: for {1 - test['recall_at_20']:.0%} of the questions the passage is not among the "
            "first 20. Try an encoder that was trained on such text, or shorter passages."
        )
    if n_test < FEW_TEST:
        return f"{n_test} test questions tell changes of this size from chance only rarely: use more, or several seeds."
    return "Try more steps (trainer.max_epochs), or other learning rates (optim.lr)."


def _by_validation(summary: Mapping[str, Any]) -> str:
    """Where there was no test before training: whether any validation was better than the one at the start."""
    best = summary.get("best") or {}
    if best.get("step") == 0 and best.get("value") is not None and summary.get("steps"):
        return (
            f"no validation was better than the one before training ({best['metric']} {best['value']:.3f}). "
            + _reason(summary)
        )
    return ""
