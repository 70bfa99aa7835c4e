"""WordPiece tokens back to text as the World Factbook writes it."""

import re
from typing import Any

# Where WordPiece put spaces around punctuation, and what a writer would have put.
_RESPACED = (
    (re.compile(r" ?(['\u2018\u2019/_+-]) ?"), r"\1"),  # d'ivoire, guinea-bissau, utc+4
    (re.compile(r"(?<=[a-z]{2}s)'(?=[a-z]{2})"), "' "),  # judges' court
    (re.compile(r"(?<=\d) ?([.,:]) ?(?=\d)"), r"\1"),  # 1,234  78.9  12:30
    (re.compile(r" ([.,;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£€#]) "), r"\1"),
    (re.compile(r" (\(e?s\))"), r"\1"),  # dollar(s)
    (re.compile(r"(?<=\b[a-z])\. (?=[a-z]\.)"), "."),  # u.s.
    (re.compile(r"^\. "), "."),  # .kn
    (re.compile(r'" ([^"]*) "'), r'"\1"'),
)


def detokenize(tokenizer: Any, ids: list[int]) -> str:
    """Answer pieces to text, lower case, special tokens left out, spaces around punctuation as a writer sets them."""
    text = " ".join(tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)).replace(" ##", "")
    for spaced, written in _RESPACED:
        text = spaced.sub(written, text)
    return text
