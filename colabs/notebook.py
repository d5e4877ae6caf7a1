"""Helpers that the notebooks share: paths, the one command, pictures.

Nothing here imports JAX: a TPU belongs to one process at a time, and that must be the
command that a cell starts, not the notebook.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile

from litevit_jax import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]
_DRIVE = pathlib.Path("/content/drive")
# Flags of a smoke run.
FEW_STEPS = (
    "--config.steps=4",
    "--config.checkpoint.every_steps=2",
    "--config.log.every_steps=1",
    "--config.log.report_images=0",
)


def on_colab() -> bool:
    """Whether this is a runtime of Colab."""
    return "google.colab" in sys.modules


def smoke() -> bool:
    """Whether LITEVIT_SMOKE asks for a few steps with tiny models."""
    return os.environ.get("LITEVIT_SMOKE", "0") not in ("", "0")


def work(folder: str, *, smoke: bool = False) -> pathlib.Path:
    """Returns the folder of all runs and creates it; smoke runs have their own.

    On Colab it is in Drive, which outlives the runtime, unless `folder` is an absolute
    path. Elsewhere it is in runs/. LITEVIT_WORK names another folder.
    """
    folder += "-smoke" * smoke
    if "LITEVIT_WORK" in os.environ:
        directory = pathlib.Path(os.environ["LITEVIT_WORK"])
    elif on_colab() and not folder.startswith("/"):
        from google.colab import drive  # pyrefly: ignore[missing-import]

        drive.mount(str(_DRIVE))
        directory = _DRIVE / "MyDrive" / folder
    else:
        directory = ROOT / "runs" / folder
    directory.mkdir(parents=True, exist_ok=True)
    print(f"everything goes to {directory}")
    return directory


def main(*arguments: object) -> None:
    """Runs main.py and shows its output, line by line.

    The stop button of a cell makes the run save and end. Press it again to end the run
    at once.

    Raises:
      RuntimeError: the command failed.
      KeyboardInterrupt: you stopped it.
    """
    command = ["main.py", *map(str, arguments)]
    # A second run on the same machine reuses compiled programs.
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    # Colab may have an accelerator's libraries without the accelerator.
    if on_colab() and not cpu.has_accelerator():
        defaults["JAX_PLATFORMS"] = "cpu"
    print(f"$ python {shlex.join(command)}", flush=True)
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**defaults, **os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # the stop button must not reach it twice
    ) as process:
        try:
            _echo(process)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                _echo(process)
            except KeyboardInterrupt:
                process.kill()
            raise
    if process.returncode:
        raise RuntimeError(
            f"the command ended with code {process.returncode}; its last lines above "
            "say why. What it saved is kept: run the cells again to go on"
        )


def _echo(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)


def find(name: str, work: pathlib.Path) -> pathlib.Path | None:
    """Finds a run or file by name: in `work` or Drive, by its path, or by an address.

    An address (https://...) is downloaded once, into `work`/downloads.

    Returns:
      Its path; None if nothing has that name, or for a run that has not saved yet.
    """
    if "://" in name:
        return _download(name, work / "downloads")
    for base in (work, _DRIVE / "MyDrive", pathlib.Path.cwd()):
        path = base / name
        if path.is_file():
            return path
        if path.is_dir():
            empty = (path / "config.json").exists() and not steps(path)
            return None if empty else path
    return None


def pretrained(name: str, work: pathlib.Path, *, smoke: bool) -> pathlib.Path:
    """The weights that `find` finds for `name`; for '' the run `pretrain`.

    Without such a run, a short one on the digits is made in `work`/digits.

    Raises:
      FileNotFoundError: `name` is given, and nothing has that name.
    """
    path = find(name or "pretrain", work)
    if path is not None:
        return path
    if name:
        raise FileNotFoundError(
            f"{name}: no run that has saved and no file of this name in {work}"
            + f", in {_DRIVE / 'MyDrive'}" * on_colab()
            + " or here"
        )
    print("no run of pretrain.ipynb here: a short one on the digits stands in")
    variant, few = ("digits,smoke", FEW_STEPS) if smoke else ("digits", ())
    run = work / "digits"
    main(f"--config=configs/mae_tiny.py:{variant}", *few, f"--workdir={run}")
    return run


def steps(run: pathlib.Path) -> list[int]:
    """The steps that a run has saved."""
    names = (p.name for p in (run / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def _download(address: str, folder: pathlib.Path) -> pathlib.Path:
    target = folder / address.partition("?")[0].rstrip("/").rpartition("/")[2]
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"downloading {address}", flush=True)
        part = target.with_name(f"{target.name}.part")
        with urllib.request.urlopen(address) as answer, open(part, "wb") as file:
            shutil.copyfileobj(answer, file)
        part.rename(target)
    return target


def images(name: str, work: pathlib.Path) -> str:
    """The data variant of a recipe: your images, or the digits if `name` is empty.

    `find` looks for `name`, a zip file or a folder. Images in Drive, which is slow for
    many small files, are copied to the machine's disk; other folders are read where
    they are.

    Raises:
      FileNotFoundError: nothing has that name.
      ValueError: a damaged zip file, or a path that no variant can hold.
    """
    if not name:
        return "digits"
    path = find(name, work)
    if path is None:
        raise FileNotFoundError(
            f"{name}: no such zip file or folder in {work}"
            + f", in {_DRIVE / 'MyDrive'}" * on_colab()
            + " or here; give its path as the file browser shows it"
        )
    if path.is_file():
        path = _unpack(path, _disk(work) / f"{_plain(path.stem)}-{_size(path)}")
    elif path.is_relative_to(_DRIVE):
        path = _copy(path, _disk(work) / _plain(path.name))
    if "," in str(path):
        raise ValueError(f"{path}: a path with a comma; rename the folder")
    return f"data=folder,path={path}"


def _disk(work: pathlib.Path) -> pathlib.Path:
    """The folder for unpacked images, which is not in Drive."""
    return pathlib.Path("/content/images") if on_colab() else work / "images"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size  # another zip file of the name has another


def _unpack(archive_path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Unpacks a zip file, without a Mac's extra files and a single outer folder."""
    if not target.exists():
        print(f"unpacking {archive_path}", flush=True)
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of an attempt that was cut off
        try:
            with zipfile.ZipFile(archive_path) as archive:
                names = (n for n in archive.namelist() if not n.startswith("__MACOSX/"))
                archive.extractall(part, names)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{archive_path}: not a whole zip file ({error}); upload it again"
            ) from None
        part.rename(target)
    inside = [p for p in target.iterdir() if not p.name.startswith(".")]
    while len(inside) == 1 and inside[0].is_dir():
        below = [p for p in inside[0].iterdir() if not p.name.startswith(".")]
        if inside[0].name in ("train", "test", "val"):
            break
        target, inside = inside[0], below
    return target


def _copy(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    if not target.exists():
        print(f"copying {source} (a zip file would be quicker)", flush=True)
        part = target.with_name(f"{target.name}.part")
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.rename(target)
    return target


def top1(run: pathlib.Path, evaluation: str) -> float:
    """Last top-1 accuracy (percent) that an evaluation of a run recorded."""
    path = run / "evals" / evaluation / "result.json"
    return json.loads(path.read_text())["last"]["top1"]


def show(*pictures: pathlib.Path, width: int | None = None) -> None:
    """Shows PNG files below one another, each under its name; names missing ones.

    A short run may have logged too little for a curve.
    """
    from IPython import display

    if not pictures:
        print("no picture is drawn yet")
    for picture in pictures:
        name = f"{picture.parent.name}/{picture.name}"
        if picture.is_file():
            print(name)
            display.display(display.Image(data=picture.read_bytes(), width=width))
        else:
            print(f"{name} is not drawn: too little was logged, or it has not run yet")
