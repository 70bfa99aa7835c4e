"""A few answers at every validation, with the passages they were read from."""

import json
from pathlib import Path

import lightning as L

from openbook.metrics.prediction import Prediction


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
        with open(self.path, "a", encoding="utf-8") as file:
            for prediction in predictions:
                line = {"step": trainer.global_step, **prediction.to_json()}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
