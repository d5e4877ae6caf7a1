"""Analyses of several runs in one report."""

import pathlib
import types

from litevit_jax.report import merge


def test_pictures_of_a_run_in_a_relative_directory_are_found_from_anywhere(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    maps = [{"model": "encoder", "file": "figures/a.png"}]
    analysis = {
        "directory": "runs/one/analysis",
        "models": {"encoder": {}},
        "maps": maps,
    }
    run = types.SimpleNamespace(name="one", analysis=analysis)
    [sheet] = merge.of_runs([run])["maps"]
    assert sheet["file"] == str(tmp_path / "runs/one/analysis/figures/a.png")
    assert pathlib.Path(sheet["file"]).is_absolute()
