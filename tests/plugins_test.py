"""Plug-ins outside the package: by a folder, by an entry point, and in workers."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from litevit_jax import exits, plugins, recipes, registry
from litevit_jax.data import pipeline, transforms
from litevit_jax.warm_start import predictor

SOURCE = """
import numpy as np
from litevit_jax.data.sources import base

class Noise(base.Source):
    classes = []
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return {"image": np.full((8, 8), index, np.uint8), "label": -1}
    def name_of(self, index):
        return f"noise {index}"
    def fingerprint(self):
        return "noise"

def make(*, split, dir, name, holdout):
    if split == "bad":
        raise ValueError("noise has no such split")
    return Noise()
"""
OBJECTIVE = """
from litevit_jax.objectives import mae

def make(*, encoder, decoder, mask_ratio=0.5):
    return mae.make(encoder=encoder, decoder=decoder, mask_ratio=mask_ratio)
"""


def write(folder, **files):
    """Files of plug-ins: kind__name=text."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of plug-ins that the variable names."""
    path = write(tmp_path / "my plugs", sources__noise=SOURCE, sources___help="")
    write(path, objectives__half=OBJECTIVE)
    monkeypatch.setenv(plugins.VARIABLE, str(path))
    return path


def test_files_of_a_folder_stand_beside_ours(folder):
    names = registry.choices("data.sources")
    assert {"noise", "folder"} <= set(names) and "_help" not in names
    source = registry.make(
        "data.sources", "noise", split="train", dir=None, name=None, holdout=0.0
    )
    assert len(source) == 6
    assert "half" in registry.choices("objectives")
    assert registry.defaults("objectives", "half") == {"mask_ratio": 0.5}
    with pytest.raises(ValueError, match=r"objective 'half': .*'depth'"):
        registry.make("objectives", "half", encoder={}, decoder={}, depth=3)


def test_several_folders_are_named_by_one_variable(folder, tmp_path, monkeypatch):
    other = write(tmp_path / "other", evaluators__count="def make(*, context): pass\n")
    monkeypatch.setenv(plugins.VARIABLE, f"{folder}{os.pathsep}{other}")
    assert "count" in registry.choices("evaluators")
    assert "noise" in registry.choices("data.sources")


def test_a_source_of_a_plug_in_is_a_variant(folder):
    data = recipes.get("mae_tiny", "data=noise,path=/a/b").data
    assert (data.source, data.dir, data.required) == ("noise", "/a/b", True)
    data = recipes.get("simmim_tiny", "noise").data
    assert (data.source, data.dir) == ("noise", None)
    with pytest.raises(ValueError, match=r"data='nois' unknown; did you mean noise"):
        recipes.get("mae_tiny", "data=nois")


def test_every_source_of_ours_is_a_variant():
    for name in registry.choices("data.sources"):
        if name not in ("digits", "digit_scenes"):  # which have no place
            made = recipes.get("mae_tiny", f"data={name},path=/a")
            assert (made.data.source, made.data.dir) == (name, "/a")
            assert made.batch_size == (4096 if name == "tfds" else None)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_a_source_of_a_folder(workers, folder):
    source = registry.make(
        "data.sources", "noise", split="train", dir=None, name=None, holdout=0.0
    )
    transform = transforms.eval_ops(image_size=(8, 8), channels=1)
    batches = list(
        pipeline.eval_batches(source, transform, batch_size=3, workers=workers)
    )
    pixels = np.concatenate([batch["image"] for batch in batches])
    assert pixels[:, 0, 0, 0].tolist() == list(range(6))


def test_a_process_that_only_unpickles_finds_the_module(folder):
    source = registry.make(
        "data.sources", "noise", split="train", dir=None, name=None, holdout=0.0
    )
    code = (
        "import pickle, sys\n"
        f"source = pickle.loads({pickle.dumps(source)!r})\n"
        "print(len(source), 'jax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "6 False\n", done.stderr


def test_a_name_that_is_taken_is_refused_with_both_files(folder, tmp_path, monkeypatch):
    write(folder, sources__tar=SOURCE)
    with pytest.raises(ValueError, match=r"'tar' stands for .*sources/tar.py and for "):
        registry.choices("data.sources")
    (folder / "sources" / "tar.py").unlink()
    other = write(tmp_path / "other", sources__noise=SOURCE)
    monkeypatch.setenv(plugins.VARIABLE, f"{folder}{os.pathsep}{other}")
    message = rf"stands for {folder}/sources/noise.py and for {other}/sources/noise.py"
    with pytest.raises(ValueError, match=message):
        registry.choices("data.sources")


def test_a_folder_that_is_none_is_refused(tmp_path, monkeypatch):
    for text, message in (
        (str(tmp_path / "nowhere"), "nowhere: no such folder; expected a folder with "),
        (str(tmp_path), "it has none; expected .*evaluators/, objectives/, sources/"),
    ):
        monkeypatch.setenv(plugins.VARIABLE, text)
        with pytest.raises(ValueError, match=message):
            registry.choices("objectives")
        assert text in plugins.overview()[0]  # of --help


def test_a_broken_plug_in_is_named_with_its_error_when_asked_for_and_when_listed(
    folder, capsys
):
    write(folder, objectives__broken="import nothing_there\n", objectives__bare="x = 1")
    why = r"objectives/broken.py cannot be imported: ModuleNotFoundError: No module na"
    with pytest.raises(ValueError, match=why) as caught:
        registry.make("objectives", "broken")
    assert exits.classify(caught.value, begun=False) == (exits.USAGE, True)
    with pytest.raises(ValueError, match=rf"'hlf' unknown; did you mean half.*{why}"):
        registry.make("objectives", "hlf")
    with pytest.raises(ValueError, match=r"objectives/bare.py defines no make"):
        registry.make("objectives", "bare")
    lines = "\n".join(plugins.overview())
    assert f"objective half: {folder}/objectives/half.py" in lines
    assert "objective broken: plug-in" in lines and "nothing_there" in lines


def test_a_plug_in_that_ends_the_program_is_broken(folder):
    write(folder, objectives__quits="import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match=r"quits.py cannot be imported: SystemExit: 0"):
        registry.make("objectives", "quits")
    assert "objectives/quits.py" in "\n".join(plugins.overview())


def test_a_mistake_that_a_plug_in_explains_is_the_users(folder):
    with pytest.raises(ValueError, match="noise has no such split") as caught:
        registry.make(
            "data.sources", "noise", split="bad", dir=None, name=None, holdout=0.0
        )
    assert exits.classify(caught.value, begun=False) == (exits.USAGE, True)


def test_a_run_that_used_a_plug_in_needs_it_again(folder, monkeypatch):
    sizes = {"width": 16, "depth": 1, "num_heads": 2}
    block = {
        "name": "half",
        "encoder": {**sizes, "patch_size": 2},
        "decoder": dict(sizes),
    }
    run = {"objective": block, "derived": {}}
    assert predictor.objective_of(run).mask_ratio == 0.5
    monkeypatch.delenv(plugins.VARIABLE)
    with pytest.raises(ValueError, match=r"'half' unknown; .*name its folder in LITEV"):
        predictor.objective_of(run)
    with pytest.raises(ValueError, match=r"'noise' unknown; .*name its folder in LITE"):
        recipes.get("mae_tiny", "data=noise")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """(folder of an installed package, how to say what its entry point names)."""
    site = tmp_path / "site"
    write(site / "my_ssl_package", sources__static=SOURCE)
    (site / "my_ssl_package" / "__init__.py").write_text("")
    about = site / "my_ssl_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: my-ssl-package\nVersion: 1.0\n")

    def point(value):
        text = f"[litevit_jax.plugins]\nmine = {value}\n"
        (about / "entry_points.txt").write_text(text)
        plugins._roots.cache_clear()

    point("my_ssl_package")
    monkeypatch.syspath_prepend(site)
    yield site / "my_ssl_package", point
    plugins._roots.cache_clear()


def test_an_entry_point_names_a_package_of_plug_ins(installed):
    assert "static" in registry.choices("data.sources")
    source = registry.make(
        "data.sources", "static", split="train", dir=None, name=None, holdout=0.0
    )
    assert type(source).__module__ == "my_ssl_package.sources.static"
    assert str(installed[0]) in plugins.folders()


@pytest.mark.parametrize("value", ["no_such_package", "no_such_package.inside"])
def test_an_entry_point_that_leads_nowhere_is_named(value, installed):
    installed[1](value)
    with pytest.raises(
        ValueError, match=rf"'statc' unknown; .*mine = '{value}' .entry"
    ):
        registry.make("data.sources", "statc")
    assert "mine" in plugins.overview()[0]


ABSTRACT = """
from litevit_jax.data.sources import base

class Half(base.Source):
    classes = []
    def __len__(self):
        return 6

def make(*, split, dir, name, holdout):
    return Half()
"""


def test_what_breaks_the_contract_is_the_users_and_named_with_its_file(folder):
    write(folder, sources__pairs="def make(*, split, dir, name, holdout): return [1]")
    write(folder, sources__few="def make(*, split): pass", sources__half=ABSTRACT)
    write(folder, evaluators__none="def make(*, context): pass")
    write(folder, evaluators__alone="def make(*, k=1): pass")
    asked = {"split": "train", "dir": None, "name": None, "holdout": 0.0}
    for kind, name, kwargs, message in (
        ("data.sources", "pairs", asked, r"pairs.py\): make returned list, expected a"),
        ("data.sources", "few", asked, r"few.py has to take split, dir, name, holdout"),
        (
            "data.sources",
            "half",
            asked,
            r"half.py\): .*name_of'?; define what it lacks",
        ),
        ("evaluators", "none", {"context": 1}, r"returned NoneType, .*x.Evaluator$"),
        ("evaluators", "alone", {"context": 1}, r"alone.py has to take context$"),
        ("evaluators", "knn", {"context": 1, "kk": 2}, r"'kk'; did you mean k\? ch"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.make(kind, name, **kwargs)
