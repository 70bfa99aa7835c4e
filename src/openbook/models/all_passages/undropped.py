"""What a generator thinks of passages is asked of the whole generator, without dropout: Atlas' own program puts its
reader into eval mode for every teacher (github.com/facebookresearch/atlas, src/atlas.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from openbook.models.pretrained import drops_out


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[bool]:
    """Within it the model is in eval mode; yields whether dropout was at work before, so that what it has encoded is of
    no use here. The modes of all its parts are put back."""
    dropped, training = drops_out(model), [part for part in model.modules() if part.training]
    if dropped:
        model.eval()
    try:
        yield dropped
    finally:
        for part in training:
            part.training = True
