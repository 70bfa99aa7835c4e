"""A few answers at every validation, with the passages they were read from."""

from pathlib import Path

import lightning as L

from openbook.metrics.prediction import Prediction
from openbook.utils.console import say
from openbook.utils.json_lines import read_json_lines, write_json_lines


class SamplePredictions(L.Callback):
    """Appends to `provenance.jsonl`, one line per question: step, and the prediction with p(z|x) and p(z|x,y) of each
    passage. The same first n questions every time, so that one can follow them."""

    def __init__(self, folder: Path, n_questions: int = 8):
        self.path = Path(folder) / "provenance.jsonl"
        self.n_questions = n_questions

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Callbacks run before the module's own hook has gathered the ranks' predictions: rank 0 shows its own.
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        predictions: list[Prediction] = pl_module.predictions[: self.n_questions]  # type: ignore[index, assignment]
        step = trainer.global_step
        # A resumed run validates again what was validated after its checkpoint: only lines of earlier steps stay.
        written, bad = read_json_lines(self.path) if self.path.is_file() else ([], [])
        if bad:
            say(f"warning: {self.path}: {len(bad)} lines cannot be read, the first is line {bad[0]}: they are left out")
        earlier = [line for line in written if line["step"] < step]
        write_json_lines(self.path, earlier + [{"step": step, **prediction.to_json()} for prediction in predictions])
