"""Writing without spaces between words: Chinese, Japanese, Thai and their like."""

import itertools

import regex

# One sign of such a script with the marks that belong to it.
SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*"
_RUN = regex.compile(rf"(?:{SPACELESS})+")
_SIGN = regex.compile(SPACELESS)


def with_spaces(text: str) -> str:
    """The text with each run of such signs as its overlapping pairs, for a search that knows words by their spaces (as
    Lucene's CJKBigramFilter does); any other text as it is. A sign that stands alone stays alone."""
    return _RUN.sub(_pairs, text)


def _pairs(found: "regex.Match[str]") -> str:
    signs = _SIGN.findall(found[0])
    return f" {' '.join(map(''.join, itertools.pairwise(signs))) or found[0]} "
