"""A library that a benchmark compares with may be missing or broken."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import importable

ROOT = pathlib.Path(__file__).parents[1]
BROKEN = {
    "raises": "raise RuntimeError('operator torchvision::nms does not exist')",
    "ends": "import os; os._exit(7)",
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Modules of these names that cannot be imported, in other processes."""
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "sound.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_what_cannot_be_imported_is_said_with_the_reason(broken, capsys):
    asked = {
        "a": ("sound",),
        "b": ("raises",),
        "c": ("sound", "ends"),
        "d": ("nowhere",),
    }
    assert importable.usable(asked) == ["a"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "b is left out: RuntimeError: operator torchvision::nms does not exist",
        "c is left out: 'import sound, ends' ended with exit code 7",
        "d is left out: ModuleNotFoundError: No module named 'nowhere'",
    ]


def test_the_input_benchmark_goes_on_without_a_broken_peer(tmp_path, image_folder):
    folder = image_folder(train=4, test=2)
    for path in folder.rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))  # named so; what it holds decides
    for name in ("torch", "torchvision", "tensorflow"):
        (tmp_path / f"{name}.py").write_text(BROKEN["raises"])
    done = subprocess.run(
        [sys.executable, "benchmarks/input_pipeline.py", f"--folder={folder}",
         "--rounds=1", "--batches=1", "--sides=torchvision,tf.data,pillow"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("torchvision", "tf.data"):
        assert f"{name} is left out: RuntimeError: operator" in done.stdout
    assert "pillow" in done.stdout.splitlines()[-1]
