"""Languages of a multilingual encoder-decoder (mBART-50, M2M100, NLLB), as its tokenizer writes them:

context   source-language question sep title text end
labels    target-language answer end                     and the answer is decoded behind the language
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from openbook.errors import OpenBookError
from openbook.utils.console import say

AS_IS = "as_is"  # what the folder's tokenizer does by itself, even where it writes answers without a language


def languages_of(tokenizer: Any) -> tuple[str, ...]:
    """The languages that a tokenizer knows by its own names; none of one that writes none."""
    if not hasattr(tokenizer, "src_lang"):
        return ()
    if hasattr(tokenizer, "lang_code_to_id"):
        return tuple(tokenizer.lang_code_to_id)
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100 names "en" what it writes as __en__
        return tuple(tokenizer.lang_code_to_token)
    own = {getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
    return tuple(token for token in tokenizer.all_special_tokens if token not in own)


def set_languages(tokenizer: Any, source: str, target: str) -> int | None:
    """Have a generator's tokenizer write these languages, and give the token that contexts begin with; None where that
    is as for any other tokenizer. source, target: empty for those of the folder. OpenBookError on languages that it
    does not know, and where answers would have none."""
    known, asked = languages_of(tokenizer), {"source": source, "target": target}
    if not known or AS_IS in (source, target):
        for side, name in asked.items():
            if name not in ("", AS_IS):
                raise OpenBookError(
                    "one language is set and the other left as it is"
                    if known
                    else "the generator's tokenizer writes no languages",
                    where=f"generator.{side}_language",
                    got=name,
                    expected=f"{AS_IS} for both, or for neither" if known else "nothing",
                )
        if known and tokenizer.bos_token_id is None:
            tokenizer.tgt_lang = None  # so it was before there were these settings
        return None
    for side, name in asked.items():
        if name and name not in known:
            raise _unknown(side, name, known)
    end = tokenizer.eos_token_id
    tokenizer.src_lang = source or tokenizer.src_lang
    written = tokenizer("")["input_ids"]
    if len(written) != 2 or written[1] != end:
        if source or target:
            raise OpenBookError(
                "this tokenizer writes languages behind its texts, which is not supported",
                where=f"generator.{'source' if source else 'target'}_language",
                got=source or target,
                expected=f"nothing with {type(tokenizer).__name__}",
            )
        say(f"{type(tokenizer).__name__} writes languages behind its texts: contexts and answers are written without")
        return None
    if not (target or tokenizer.tgt_lang):
        raise OpenBookError(
            "the generator's tokenizer writes the language of every answer, and none is set",
            where="generator.target_language",
            got="nothing",
            expected=f"one of its {len(known)} languages, such as {tokenizer.src_lang}",
            action=f"Or set generator.source_language={AS_IS} and generator.target_language={AS_IS} to do without.",
        )
    tokenizer.tgt_lang = target or tokenizer.tgt_lang
    say(f"contexts begin with the language {tokenizer.src_lang}, answers with {tokenizer.tgt_lang}")
    return int(written[0])


def _unknown(side: str, name: str, known: Iterable[str]) -> OpenBookError:
    """With the known ones that begin like it or look like it."""
    near = [one for one in known if one.lower()[:2] == name.lower()[:2]]
    near = list(dict.fromkeys([*difflib.get_close_matches(name, list(known), 3), *near]))[:5]
    return OpenBookError(
        "the generator's tokenizer does not know this language",
        where=f"generator.{side}_language",
        got=name,
        expected=f"for example {', '.join(near or list(known)[:5])}",
    )
