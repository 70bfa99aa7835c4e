"""How near a produced text is to its gold texts: ROUGE-L, BLEU-1, Q-BLEU-1, and how varied many texts are.

Words are lower-cased and without punctuation; "don't", "u.s", "well-known" and "5,000.5" are one word each. The
published scorers cut words with the Penn Treebank tokenizer, which cuts "don't" in two; else the words are the same.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import regex as unicode_re
from numpy.typing import NDArray

from openbook.metrics.matching import require_answers

Words = tuple[str, ...]

_WORDS = unicode_re.compile(
    r"[\p{L}\p{N}\p{M}]+(?:(?:['’.-]|(?<=\p{N})[,:](?=\p{N}))[\p{L}\p{N}\p{M}]+)*|[\p{Sc}\p{Sm}%&]"  # noqa: RUF001
)
_QUESTION_WORDS = frozenset("what which why who whom whose where when how".split())
_WITH_NEXT_WORD = frozenset({"what", "which"})  # "which river" asks for a river: both words are the question's type
_FUNCTION_WORDS = frozenset(
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself "
    "it its itself they them their theirs themselves this that these those "
    "am is are was were be been being have has had having do does did doing can will just should don t s now "
    "a an the and but if or because as until while of at by for with about against between into through during before "
    "after above below to from up down in out on off over under again further then once here there "
    "all any both each few more most other some such no nor not only own same so than too very".split()
)


class QBleuWeights(NamedTuple):
    """Shares of the parts of a question in its answerability, and of the answerability in Q-BLEU.

    What is left to 1 of the first three is the weight of function words. The defaults are those that public users of
    the released script give as tuned on SQuAD; the paper's own table was not at hand to check them against.
    """

    entities: float = 0.41
    relevant: float = 0.36
    question_type: float = 0.20
    delta: float = 0.66


SQUAD_WEIGHTS = QBleuWeights()


@lru_cache(maxsize=65536)
def words(text: str) -> Words:
    """The text's words, lower-cased, without punctuation; composed and decomposed accents are the same."""
    return tuple(_WORDS.findall(unicodedata.normalize("NFC", text).lower()))


def rouge_l(prediction: str, answers: Sequence[str], beta: float = 1.2) -> float:
    """F of the longest common subsequence of words, 0 to 1 (Lin 2004, eq. 2 to 4); 0 where a text has no word.

    Over several answers the best precision and the best recall count, each for itself, and beta is 1.2: so the MS MARCO
    and COCO scorers do.
    """
    require_answers(answers)
    produced = words(prediction)
    pairs = [(_lcs(produced, gold), len(gold)) for gold in map(words, answers)]
    precision = max(common for common, _ in pairs) / max(len(produced), 1)
    recall = max(common / max(length, 1) for common, length in pairs)
    if not precision:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def bleu_1_counts(prediction: str, answers: Sequence[str]) -> tuple[int, int, int]:
    """(matched words, produced words, words of the answer nearest in length) of one question, what BLEU-1 sums up.

    A produced word matches as often as the answer that has it most often has it; of two answers equally near in length
    the shorter counts (Papineni et al. 2002, section 2.1).
    """
    require_answers(answers)
    produced, golds = words(prediction), [words(answer) for answer in answers]
    most: Counter[str] = Counter()
    for gold in golds:
        most |= Counter(gold)
    nearest = min((abs(len(gold) - len(produced)), len(gold)) for gold in golds)[1]
    return (Counter(produced) & most).total(), len(produced), nearest


def bleu_1(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Unigram precision times the brevity penalty, from sums of `bleu_1_counts` (Papineni et al. 2002, section 2.3).

    counts: [..., 3], summed over the questions that are scored together. Returns [...], 0 to 1; 0 where nothing was
    produced.
    """
    length = np.maximum(counts[..., 1], 1)
    return np.asarray(counts[..., 0] / length * np.exp(np.minimum(0.0, 1 - counts[..., 2] / length)))


def q_bleu_1(prediction: str, answers: Sequence[str], weights: QBleuWeights = SQUAD_WEIGHTS) -> float:
    """delta * answerability + (1 - delta) * BLEU-1 of one question, best over the answers, 0 to 1.

    Answerability is the weighted mean, over entities, other relevant words, question type and function words, of the
    harmonic mean of BLEU-1 with the produced and BLEU-1 with the gold question as the candidate. That is how the
    script released with Nema and Khapra (2018) computes it: entities are capitalised words, and a part that either
    question lacks counts 0.
    """
    require_answers(answers)
    shares = (*weights[:3], 1 - weights.entities - weights.relevant - weights.question_type)
    produced = _question_parts(prediction)
    scores = []
    for answer in answers:
        parts = zip(shares, produced, _question_parts(answer), strict=True)
        answerability = sum(share * _mutual_bleu_1(ours, theirs) for share, ours, theirs in parts)
        fluency = _pair_bleu_1(*bleu_1_counts(prediction, [answer]))
        scores.append(weights.delta * answerability + (1 - weights.delta) * fluency)
    return max(scores)


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Distinct n-grams of all texts together / all n-grams, 0 to 1 (Li et al. 2016); None where there is no n-gram."""
    grams = [gram for text in texts for gram in zip(*(words(text)[start:] for start in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def _lcs(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, one machine word of the table's row at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    full = row = (1 << len(second)) - 1
    for word in first:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(second) - row.bit_count()


def _question_parts(question: str) -> tuple[Words, ...]:
    """Entities, relevant words, question type, function words, as Q-BLEU tells them apart by their spelling alone."""
    tokens = question.split()
    kind = {place for place, token in enumerate(tokens) if token.lower() in _QUESTION_WORDS}
    kind |= {place + 1 for place in kind if tokens[place].lower() in _WITH_NEXT_WORD and place + 1 < len(tokens)}
    typed = [tokens[place] for place in sorted(kind)]
    entities = [token for place, token in enumerate(tokens) if token[0].isupper() and (place > 0 or 0 not in kind)]
    relevant = [
        token for token in tokens if not (token in typed or token[0].isupper() or token.lower() in _FUNCTION_WORDS)
    ]
    function = [token for token in tokens if token.lower() in _FUNCTION_WORDS]
    return tuple(words(" ".join(part)) for part in (entities, relevant, typed, function))


def _mutual_bleu_1(first: Words, second: Words) -> float:
    matched = (Counter(first) & Counter(second)).total()
    precision = _pair_bleu_1(matched, len(first), len(second))
    recall = _pair_bleu_1(matched, len(second), len(first))
    return 2 * precision * recall / (precision + recall) if matched else 0.0


def _pair_bleu_1(matched: int, produced: int, gold: int) -> float:
    """`bleu_1` of one pair of texts, without the cost of an array."""
    return matched / produced * math.exp(min(0.0, 1 - gold / produced)) if matched else 0.0
