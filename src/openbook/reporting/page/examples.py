"""Which questions are shown: wrong ones first, about as many different things as there are."""

from collections import Counter
from collections.abc import Sequence

from openbook.metrics.prediction import Prediction

N_EXAMPLES = 12


def chosen_examples(predictions: Sequence[Prediction], n_examples: int = N_EXAMPLES) -> list[Prediction]:
    """Wrong ones first, half of each if there are enough of both.

    Of those of which there are fewer, then of the others, one after the other is chosen: always the first in the file
    of the entity, then of the relation, that was chosen least.
    """
    right, wrong = ([one for one in predictions if is_right(one) == kind] for kind in (True, False))
    n_right = min(len(right), max(n_examples // 2, n_examples - len(wrong)))
    chosen: list[Prediction] = []
    entities, relations = Counter[str](), Counter[str]()
    for kind, n in sorted(((wrong, n_examples - n_right), (right, n_right)), key=lambda pair: len(pair[0])):
        left = {place: (entity(one), one.relation) for place, one in enumerate(kind)}
        for _ in range(min(n, len(left))):
            place = min(left, key=lambda place: (entities[left[place][0]], relations[left[place][1]], place))
            about, relation = left.pop(place)
            entities[about] += 1
            relations[relation] += 1
            chosen.append(kind[place])
    return sorted(chosen, key=is_right)


def is_right(prediction: Prediction) -> bool:
    """Exact match; without a generator, whether the first passage is relevant."""
    return any(prediction.hits[:1]) if prediction.exact_match is None else bool(prediction.exact_match)


def entity(one: Prediction) -> str:
    """What a question is about, as far as its passages tell: the title of the first relevant one, else the longest
    title that stands in the question, else the question itself."""
    titles = [passage.title for passage in one.passages if passage.title]
    relevant = [passage.title for passage in one.passages if passage.relevant and passage.title]
    asked = one.question.casefold()
    named = sorted((title for title in titles if title.casefold() in asked), key=len, reverse=True)
    return next(iter([*relevant, *named]), one.question).casefold()
