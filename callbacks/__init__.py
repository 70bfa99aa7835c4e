"""What happens beside the training step: refreshing the index, measuring, checkpoints.

The folder is the subpackage openbook.callbacks. Imported under another name its classes would exist twice, and
Lightning would not find a callback's saved state again: so that is refused.
"""

if __name__ != "openbook.callbacks":
    raise ImportError(f"import openbook.callbacks, not {__name__}: each class would exist twice")

from openbook.callbacks.checkpointing import Checkpointing
from openbook.callbacks.collapse import CollapseWatch
from openbook.callbacks.index_refresh import IndexRefresh
from openbook.callbacks.progress import Progress
from openbook.callbacks.sample_predictions import SamplePredictions
from openbook.callbacks.staleness import Staleness
from openbook.callbacks.throughput import Throughput

__all__ = ["Checkpointing", "CollapseWatch", "IndexRefresh", "Progress", "SamplePredictions", "Staleness", "Throughput"]
