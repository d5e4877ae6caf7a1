"""Services that show a run's numbers: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is an optional package, imported when a run asks for it, and configured by its own
environment variables. Where it keeps its files, and whether it needs a network:
docs/workdir.md.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from litevit_jax import choices, paths

# Name in `log.writers` -> package; jsonl needs none.
PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
NAMES = ("jsonl", *PACKAGES)
_MOST = 500  # letters of a parameter that every MLflow takes
_OFFLINE = {
    "wandb": "set WANDB_API_KEY, or WANDB_MODE=offline to send it later",
    "mlflow": "see MLFLOW_TRACKING_URI",
    "trackio": "see TRACKIO_DIR",
}


def check(names: Sequence[str]) -> None:
    """Checks `log.writers` before anything is read.

    Raises:
      ValueError: an unknown writer.
      ModuleNotFoundError: the package of a writer is not installed.
    """
    for name in names:
        choices.check("log.writers", name, NAMES)
    missing = [name for name in asked(names) if not _is_installed(PACKAGES[name])]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise ModuleNotFoundError(
            f"log.writers: {', '.join(missing)} needs a package that is not installed; "
            f"install it: pip install {packages}, or leave it out of log.writers"
        )


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


def asked(names: Sequence[str]) -> list[str]:
    """Returns the services among `names`, each once."""
    return [name for name in dict.fromkeys(names) if name in PACKAGES]


def advice(name: str) -> str:
    """Says what to do about a service that does not start."""
    way = _OFFLINE.get(name)
    return f"{way}, or leave it out of log.writers" if way else "leave it out"


def start(
    name: str,
    workdir: pathlib.Path,
    config: dict[str, Any],
    names: dict[str, str] | None,
) -> tuple[Any, dict[str, str] | None]:
    """Starts a service.

    Args:
      name: of the service.
      workdir: of the run.
      config: of the run, as it is saved.
      names: those of the run there, if an earlier start recorded some.

    Returns:
      What has `write`, `flush` and `close`; and the run's names, None if it needs none.

    Raises:
      Exception: whatever the library raises.
    """
    if name == "tensorboard":
        return TensorBoard(workdir), None
    title = workdir.name or config["name"]
    kinds = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}
    service = kinds[name](workdir, title, config, names)
    return service, service.names


class TensorBoard:
    """Events in `workdir`/tensorboard; in a store they are copied when flushed."""

    def __init__(self, workdir: pathlib.Path) -> None:
        import tensorboardX

        folder = workdir / "tensorboard"
        self._mirror = None if paths.is_local(workdir) else paths.Mirror(folder)
        if self._mirror is not None:
            folder = self._mirror.folder
        self._refused: Exception | None = None  # the first error of the events
        self._events = events = tensorboardX.SummaryWriter(str(folder))
        assert events.file_writer is not None
        self._watch(events.file_writer.event_writer._ev_writer)

    def _watch(self, file: Any) -> None:
        """Keeps the first error of the events, for `write` to raise.

        A thread writes them: an error would end it, and the next event would wait for
        it for ever.
        """
        write, flush = file.write_event, file.flush

        def noting(call: Callable[..., None], *args: object) -> None:
            try:
                with paths.named(file._file_name):
                    call(*args)
            except (OSError, ValueError) as error:
                self._refused = self._refused or error

        file.write_event = functools.partial(noting, write)
        file.flush = functools.partial(noting, flush)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes an event for each number.

        Raises:
          OSError, ValueError: an event before could not be written.
        """
        if self._refused is not None:
            raise self._refused
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Copies the events to the store that has the run."""
        if self._mirror is not None:
            self._events.flush()
            self._mirror.copy()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._events.close()
        self.flush()


class Wandb:
    """A run of Weights & Biases; its files lie in `workdir`/wandb.

    Updates are its own axis, `step`: a resumed run may repeat some of them.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        title: str,
        config: dict[str, Any],
        names: dict[str, str] | None,
    ) -> None:
        wandb: Any = importlib.import_module("wandb")

        self.names = names or {"id": uuid.uuid4().hex[:16]}
        self._run = wandb.init(
            project=config["log"]["project"],
            name=title,
            id=self.names["id"],
            resume="allow",
            config=config,
            dir=str(workdir) if paths.is_local(workdir) else None,
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Logs the numbers of an update."""
        self._run.log({**numbers, "step": step})

    def flush(self) -> None:
        """The library sends rows by itself."""

    def close(self) -> None:
        """Sends what is left and ends the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or where the library keeps runs."""

    def __init__(
        self,
        workdir: pathlib.Path,
        title: str,
        config: dict[str, Any],
        names: dict[str, str] | None,
    ) -> None:
        mlflow: Any = importlib.import_module("mlflow")

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (names or {}).get("uri")
        self._client = mlflow.MlflowClient(uri or mlflow.get_tracking_uri())
        if names is None:
            experiment = self._experiment(config["log"]["project"])
            run = self._client.create_run(experiment, run_name=title)
            names = {"id": run.info.run_id, "uri": uri or mlflow.get_tracking_uri()}
            params = [
                mlflow.entities.Param(k, str(v)[:_MOST]) for k, v in _fields(config)
            ]
            for first in range(0, len(params), 100):  # as many as a call may have
                self._client.log_batch(names["id"], params=params[first : first + 100])
        else:
            self._client.update_run(names["id"], status="RUNNING")
        self.names = names
        self._metric = mlflow.entities.Metric

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Logs the numbers of an update."""
        now = int(1000 * time.time())
        metrics = [self._metric(k, float(v), now, step) for k, v in numbers.items()]
        self._client.log_batch(self.names["id"], metrics=metrics)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self.names["id"])


class Trackio:
    """A run of Trackio, in the folder of that library (TRACKIO_DIR)."""

    def __init__(
        self,
        workdir: pathlib.Path,
        title: str,
        config: dict[str, Any],
        names: dict[str, str] | None,
    ) -> None:
        trackio: Any = importlib.import_module("trackio")

        # It knows runs by their names: those of two directories must differ.
        self.names = names or {
            "project": config["log"]["project"],
            "name": f"{title}-{uuid.uuid4().hex[:6]}",
        }
        self._run = trackio.init(
            **self.names, resume="allow", config=config, embed=False
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Logs the numbers of an update."""
        self._run.log(numbers, step=step)

    def flush(self) -> None:
        """The library writes rows by itself."""

    def close(self) -> None:
        """Writes what is left and ends the run."""
        self._run.finish()


def _fields(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Lists (dotted name, value) of a config."""
    rows = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _fields(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows
