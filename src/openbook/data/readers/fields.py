"""Fields of one record, checked: what is wrong with one names it, and says what other projects call it."""

import ast
import difflib
import hashlib
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import BadLineError

KNOWN_AS = {  # what other projects call the same field
    "id": ("_id", "docid", "pid", "passage_id", "qid"),
    "title": ("Title", "name", "wikipedia_title"),
    "text": ("contents", "content", "passage", "body", "context"),
    "question": ("query", "qText", "input", "claim"),
    "answers": ("answer", "golden_answers", "answer_aliases", "targets", "output", "label"),
    "positive_ids": ("positive_ctxs", "positive_passages", "provenance", "gold_ids", "supporting_facts"),
}


TOO_MANY_DIGITS, SHORTER = "a number of thousands of digits", "text, or a shorter number"
EMPTY = "passages without text are left out of the questions that carry them"  # a note


class Asked(NamedTuple):
    """A question as a file brings it: with the passages that its record carries, and with what is worth counting
    (`notes`) because it was left out of it."""

    example: Example
    passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()


def json_object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLineError(
            "malformed JSON",
            got=f"{error.msg} at position {error.pos + 1}, near {line[max(0, error.pos - 20) : error.pos + 20]!r}",
            expected="one JSON object per line",
        ) from None
    except ValueError:  # Python reads no longer ones (sys.set_int_max_str_digits)
        raise BadLineError("malformed JSON", got=TOO_MANY_DIGITS, expected=SHORTER) from None
    except RecursionError:
        raise BadLineError("malformed JSON", got="brackets nested too deep") from None
    if not isinstance(fields, dict):
        raise BadLineError("a line is not a JSON object", got=type(fields).__name__, expected="{...} on each line")
    return fields


def require(fields: Mapping[str, Any], key: str, needs: str) -> Any:
    """The value at a key; where there is none, what the record has instead."""
    if key in fields:
        return fields[key]
    raise BadLineError(
        f"a line has no `{key}`",
        got=f"the keys {', '.join(map(repr, sorted(fields)))}"[:200],
        expected=needs,
        action=_way_out(fields, key),
    )


def _way_out(fields: Mapping[str, Any], key: str) -> str:
    """What leads from a record without the key to one that is read."""

    def near(missing: str) -> str:
        known = [alias for alias in KNOWN_AS.get(missing, ()) if alias in fields]
        return (known or difflib.get_close_matches(missing, fields, 1) or [""])[0]

    if not (found := near(key)):
        text = near("text") if key == "title" and "text" not in fields else ""
        return f"Rename `{text}` to `text`, and add a `title`, which may be empty." if text else ""
    value = fields[found]
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value)):
        kind = "a list of strings" if key in ("answers", "positive_ids") else "a string"
        return f"`{found}` holds objects: write what counts of them as `{key}`, {kind}."
    return f"Rename `{found}` to `{key}`. Or set data.columns={key}:{found}."


def string(value: Any, key: str, *, numbers: bool = False, empty: bool = True) -> str:
    """A text that can be written as UTF-8. numbers: a whole number is one too; empty: nothing but spaces is."""
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadLineError(f"`{key}` is not text", got=f"{value!r}"[:80], expected="a string")
    if "\0" in value:
        raise BadLineError(f"`{key}` holds NUL characters", got=f"{value.count(chr(0))} of them", action="Remove them.")
    if not empty and not value.strip():
        raise BadLineError(f"`{key}` is empty", expected="some text", action="Fill it or remove the line.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLineError(f"`{key}` holds half a surrogate pair", expected="whole characters") from None
    return value


def strings(value: Any, key: str, *, numbers: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list):
        expected = "a list of strings, also for a single one"
        raise BadLineError(f"`{key}` is not a list", got=f"{value!r}"[:80], expected=expected)
    if not _all_sound(value):  # one by one, for what is wrong with which
        return tuple(string(item, key, numbers=numbers, empty=False) for item in value)
    return tuple(value)


def _all_sound(values: list[Any]) -> bool:
    """Whether all are texts that `string` would return as they are; looked at together, as most of a file's are."""
    try:
        together = "".join(values)
        together.encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return "\0" not in together and all(map(str.strip, values))


def text(fields: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    """The text at a key that a record must have."""
    return string(require(fields, key, f"a text named `{key}`"), key, numbers=True, empty=empty)


def listed(fields: Mapping[str, Any], key: str, kind: type = dict) -> list[Any]:
    """A list of objects of one kind at a key. Hugging Face's data sets keep a list of objects as one object of equally
    long lists; that is turned round. Missing or null: an empty list."""
    value = fields.get(key)
    if kind is dict and isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise BadLineError(f"the lists of `{key}` differ in length", expected="one value each")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        expected = "objects" if kind is dict else "lists" if kind is list else "strings"
        raise BadLineError(
            f"`{key}` is not a list of {expected}", got=f"{value!r}"[:80], expected=f"a list of {expected}"
        )
    return value


def answers_of(value: Any, key: str) -> tuple[str, ...]:
    """Distinct answers in their order: a list of texts or numbers, one text, or a list written as text, as csv files
    have it (['a', 'b'] as Python or JSON writes it). Empty ones are left out."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed_in(value)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = [value]
    found = (string(_written(one), key) for one in value)
    return tuple(dict.fromkeys([one for one in found if one.strip()]))


def _listed_in(text: str) -> Any:
    """The list that a text writes; the text itself where it only begins with a bracket."""
    if (strings := _side_by_side(text)) is not None:
        return strings
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        with suppress(ValueError):
            return json.loads(text)
    return text


def _side_by_side(text: str) -> list[str] | None:
    """The strings of a list that numpy has written, ['a' 'b'] without commas, which Python would read as one; None for
    any other list."""
    try:
        tokens = [one for one in tokenize.generate_tokens(io.StringIO(text.strip()).readline) if one.string.strip()]
    except (tokenize.TokenError, SyntaxError):
        return None
    inner = tokens[1:-1]
    kinds = [one.type for one in inner]
    if (tokenize.STRING, tokenize.STRING) not in pairwise(kinds):
        return None
    if set(kinds) != {tokenize.STRING}:
        raise BadLineError("a list in which commas are missing", got=text[:80], expected="['a', 'b']")
    return [ast.literal_eval(one.string) for one in inner]


def _written(value: Any) -> Any:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def passage_of(title: str, content: str, identity: str = "") -> Passage:
    """A passage that a record carries. One without an id of its own is known by its content: the same passage has the
    same id in every file and at every reading."""
    if not identity:
        identity = "h" + hashlib.blake2b(f"{title}\0{content}".encode(), digest_size=8).hexdigest()
    return Passage(identity, title, content)


def json_of(example: Example) -> dict[str, Any]:
    """A question as this project's .jsonl has it; what came with later versions is left out where it is empty."""
    written: dict[str, Any] = {
        "id": example.id,
        "question": example.question,
        "answers": example.answers,
        "positive_ids": example.positive_ids,
        "relation": example.relation,
        "phrasing": example.phrasing,
    }
    if example.negative_ids:
        written["negative_ids"] = example.negative_ids
    if example.grades:
        written["grades"] = example.grades
    if example.reward is not None:
        written["reward"] = example.reward
    if example.paraphrases:
        written["paraphrases"] = example.paraphrases
    return written
