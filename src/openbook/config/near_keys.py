"""Which key was meant by a name that is none."""

import difflib

from openbook.errors import OpenBookError

# What other programs call them.
ALSO_CALLED = {
    "learning_rate": "optim.lr",
    "steps": "trainer.max_steps",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "top_k": "retriever.n_docs",
    "k": "retriever.n_docs",
    "num_beams": "decode.beams",
    "gradient_accumulation_steps": "trainer.accumulate",
}


def unknown_key(key: str, where: str, known: list[str]) -> OpenBookError:
    """An error that names the nearest right key: by the whole dotted name, else by its last part alone (lr -> optim.lr,
    learning_rate too)."""
    hint = f"Did you mean {near}?" if (near := nearest(key, known)) else "`python -m openbook keys` lists every key."
    return OpenBookError("unknown key", where=where, got=key, expected="a key of the configuration", action=hint)


def nearest(key: str, known: list[str]) -> str | None:
    """The known key that is most likely meant."""
    last = key.rsplit(".", 1)[-1]
    if also := ALSO_CALLED.get(last):
        return also
    same = [one for one in known if one.rsplit(".", 1)[-1] == last]
    near = [] if same and "." not in key else difflib.get_close_matches(key, known, 1, 0.75)
    if not near and not same:
        lasts = difflib.get_close_matches(last, [one.rsplit(".", 1)[-1] for one in known], 1, 0.6)
        same = [one for one in known if lasts and one.rsplit(".", 1)[-1] == lasts[0]]
    return next(iter(near or sorted(same, key=_comes_before)), None)


def _comes_before(key: str) -> bool:
    """Settings of what runs before joint training come last: who writes lr means that of the training."""
    return key.startswith(("warmup.", "hot_swap.", "dpr."))
