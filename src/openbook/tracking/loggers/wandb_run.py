"""A run as wandb shows it: curves, test metrics, a table of predictions, the report.

Nothing of wandb ends a run: what fails is said once, counted, and left out; start and end wait for a server no longer
than wandb.timeout. Without one the run is kept in its folder, complete, and the same on a server after `wandb sync`.
"""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from openbook.config.load import flat
from openbook.config.schema import Config
from openbook.metrics.prediction import Prediction
from openbook.tracking.loggers.identity import SIGNALLED, SWEEP_ID, Identity
from openbook.tracking.loggers.predictions_table import columns, rows
from openbook.tracking.loggers.run_facts import numbers, tags
from openbook.utils.console import say
from openbook.utils.signals import Stopped


class WandbRun(Logger):
    """wandb's steps are those of metrics.csv, one row of its history each. Only rank 0 has a run.

    mode: offline or online. curves: {step: {metric: value}} of a resumed run up to its checkpoint. Each process that
    works on a run without a server keeps the whole of it; what earlier ones have kept is marked as sent.
    """

    def __init__(
        self, folder: Path, config: Config, mode: str, curves: Mapping[int, Mapping[str, float]], resumed: bool
    ):
        super().__init__()
        self.folder, self.config = Path(folder), config
        self.failed = 0
        self.identity = Identity("")
        self._stop_asked = False
        self._first = 0  # step from which on rows are new to the server
        self._run: Any = None
        self._start(mode, curves, resumed)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.identity.id

    @property
    def experiment(self) -> Any:
        """wandb's own run; None on other ranks and where there is none."""
        return self._run

    @rank_zero_only
    def _start(self, mode: str, curves: Mapping[int, Mapping[str, float]], resumed: bool) -> None:
        self.identity = replace(Identity.of(self.folder, resumed), stopped=False)
        self._attempt("keep its id", lambda: self.identity.keep(self.folder))
        self._attempt("start", lambda: self._init(mode))
        if self._run is None and mode == "online":
            say("warning: wandb cannot be reached: the run is kept in its folder until `wandb sync`")
            self._attempt("start offline", self._init_offline)
        for step, row in sorted(curves.items()):
            self._log(row, step)
        if self._first > max(curves, default=-1) + 1:
            say(f"wandb has the rows up to step {self._first - 1} already: they stay as they are")

    def _init(self, mode: str) -> None:
        # It would report its own errors, with paths, to its makers: also of a run that is offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            # What wandb would gather of its own accord: the command line, the repository's remote address, an e-mail
            # address, the name of the host.
            x_disable_meta=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_code=True,
            host="-",
            program="openbook",
            init_timeout=self.config.wandb.timeout,
            finish_timeout=self.config.wandb.timeout,
            stop_fn=self._stop,
        )
        run = wandb.init(
            id=self.identity.id,
            project=self.config.wandb.project,
            name=f"{self.config.experiment}/{self.folder.name}",
            group=self.config.experiment,
            tags=tags(self.config),
            config=dict(flat(self.config)),
            dir=str(self.folder),
            mode="offline" if mode == "offline" else "online",
            # Offline there is nobody to ask how far the run is: it is kept whole, and takes the place of what was sent.
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        self._run = run
        self._first = run.starting_step if run.resumed else 0
        kept = Path(run.dir).parent
        for earlier in self.folder.glob("wandb/offline-run-*/*.wandb"):
            if earlier.parent.name != kept.name:  # all of it is in this one, which it would overwrite
                earlier.with_suffix(".wandb.synced").touch()

    def _init_offline(self) -> None:
        """After an attempt online, whose half-made run wandb's service would hold on to by its id."""
        import wandb

        if wandb.run is None:  # else the caller's own run is in the same service
            wandb.teardown()
        self._init("offline")

    def _stop(self) -> None:
        """Somebody has pressed Stop on the run's page: the run saves and ends, as by a signal from elsewhere. A trial's
        agent sends that itself, and a second one would end the run before it has saved."""
        self._stop_asked = True
        if not os.environ.get(SWEEP_ID):
            os.kill(os.getpid(), signal.SIGTERM)

    def _attempt(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.failed += 1
            if self.failed == 1:
                said = str(error).strip().split("\n", 1)[0] or type(error).__name__
                say(f"warning: wandb: {what}: {said}; the run goes on, and metrics.csv has everything")

    def _do(self, what: str, call: Callable[[Any], Any]) -> None:
        if self._run is not None:
            self._attempt(what, lambda: call(self._run))

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        if step >= self._first and row:
            self._do("log", lambda run: run.log(dict(row), step=step))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """step: as Lightning counts, before this one. Rows that the server has of the steps behind a checkpoint are the
        same, for a resumed run repeats them."""
        self._log({name: value for name, value in metrics.items() if name != "epoch"}, int(step or 0) + 1)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings were given at the start."""

    @rank_zero_only
    def tested(self, when: str, summary: Mapping[str, Any]) -> None:
        """The metrics of a test for the run's summary: test/exact_match and others, or baseline/exact_match."""
        if summary:
            self._do("summary", lambda run: run.summary.update(numbers(when, summary)))

    @rank_zero_only
    def predictions(self, predictions: Sequence[Prediction], step: int) -> None:
        """A table of test questions at the run's last step, as many as wandb.predictions says."""
        shown = rows(predictions, self.config.wandb.predictions)
        if not shown or self._run is None:
            return
        said = f"{len(shown)} of {len(predictions)} test questions, wrong ones first"
        say(f"wandb: a table of {said}")
        step = max(step, self._first)

        def add(run: Any) -> None:
            import wandb

            with self._staged():
                run.log({"predictions": wandb.Table([*columns()], shown)}, step=step)
            run.summary.update({"predictions_shown": said})

        self._do("predictions", add)

    @rank_zero_only
    def report(self, path: Path) -> None:
        """report.html as an artifact."""

        def add(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"report-{self.identity.id}", type="report")
            with self._staged():
                artifact.add_file(str(path), name=path.name)
                run.log_artifact(artifact)

        if self.config.wandb.report and path.is_file():
            self._do("report", add)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Files of artifacts wait in the run folder, not at the user's home, from where a later `wandb sync` on another
        machine would miss them without a word. What the user has chosen stays."""
        name = "WANDB_DATA_DIR"
        chosen = name in os.environ
        os.environ.setdefault(name, str((self.folder / "wandb").resolve()))
        try:
            yield
        finally:
            if not chosen:
                del os.environ[name]

    def close(self, error: BaseException | None) -> bool:
        """The end of the process, by this error. Whether the run's sweep has ended it early, through its agent: then
        all is well. A trial that something else has stopped is to be resumed."""
        code, stopped = 0 if error is None else getattr(error, "code", 1), False
        if isinstance(error, Stopped) and os.environ.get(SWEEP_ID, "") == self.identity.sweep != "":
            if Path(os.environ.get(SIGNALLED, "")).is_file() and not self._stop_asked:
                self._do("preempted", lambda run: run.mark_preempting())
            else:
                code, stopped = 0, True
                self._attempt("keep its id", lambda: replace(self.identity, stopped=True).keep(self.folder))
                say("stopped early by its sweep")
        run, self._run = self._run, None
        if run is None:
            return stopped
        address, kept = ("" if run.offline else run.url), Path(run.dir).parent
        send = f"`wandb sync {'--include-online ' if address else ''}{kept}` sends"
        self._attempt("finish", lambda: run.finish(exit_code=code))
        say(f"       wandb  {address or f'{send} the run'}")
        if self.failed:
            say(f"warning: {self.failed} of wandb's calls failed; {send} what there is")
        return stopped
