"""A few answers at every validation, with the passages they were read from."""

import json
from pathlib import Path

import lightning as L

from openbook.metrics.prediction import Prediction
from openbook.utils.atomic import write_text


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
        new = [{"step": step, **prediction.to_json()} for prediction in predictions]
        write_text(
            self.path, "".join(self._before(step) + [json.dumps(line, ensure_ascii=False) + "\n" for line in new])
        )

    def _before(self, step: int) -> list[str]:
        """The lines of earlier steps: a resumed run validates again what was validated after its checkpoint."""
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8", newline="\n") as file:
            return [line for line in file if line.endswith("\n") and json.loads(line)["step"] < step]
