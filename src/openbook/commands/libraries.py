"""torch, Lightning and transformers, which most commands wait for."""

import gc


def load_libraries() -> None:
    """Import them, and silence what they say that does not apply here.

    They make a million objects that stay: without looking for garbage among them meanwhile it takes a fifth less time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import openbook.setup.prepare  # noqa: F401
    finally:
        if collects:
            gc.freeze()  # nothing of it is looked through later either
            gc.enable()
    from openbook.setup.trainer import quiet

    quiet()
