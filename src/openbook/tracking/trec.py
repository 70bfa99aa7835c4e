"""Rankings and judgements as TREC's tools read them: `run.trec` and `qrels.trec`."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from openbook.metrics.prediction import Prediction
from openbook.utils.atomic import write_text

RUN, QRELS = "run.trec", "qrels.trec"


def write_trec(folder: Path, records: Sequence[Prediction]) -> None:
    """Write both files, where questions were ranked to some depth; judgements only where there are any.

    The score of the passage at rank r of n is n + 1 - r: trec_eval orders by scores alone and breaks ties by id, so
    this is what keeps the order. Columns end at spaces: in ids these, and per cent signs, are percent-encoded.
    """
    ranked = [record for record in records if record.ranking]
    lines = [
        f"{_id(record.id)} Q0 {_id(identity)} {rank} {len(record.ranking) + 1 - rank} openbook\n"
        for record in ranked
        for rank, (identity, _) in enumerate(record.ranking, 1)
    ]
    judged = [
        f"{_id(record.id)} 0 {_id(identity)} {grade}\n" for record in records for identity, grade in record.judged
    ]
    for name, content in ((RUN, lines), (QRELS, judged)):
        if content:
            write_text(folder / name, "".join(content))


def _id(identity: str) -> str:
    return "".join(quote(sign) if sign.isspace() or sign == "%" else sign for sign in identity)
