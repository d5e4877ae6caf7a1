"""The notebooks of colabs/, run from top to bottom, and what their cells share."""

import base64
import functools
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import nbclient
import nbformat
import pytest
from PIL import Image

from colabs import notebook
from tests import processes

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("pretrain", "finetune", "look_inside")
each = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)


# Two narrow blocks and no metrics of health, since most of the time is tracing, and
# commands that start as forks of one process.
PRELUDE = """
%reset -f
import types
from colabs import notebook
from tests import processes

notebook.subprocess = types.SimpleNamespace(
    Popen=processes.start, PIPE=None, STDOUT=None
)
sizes = ("depth=2", "width=16", "num_heads=2")
small = tuple(f"--config.objective.encoder.{size}" for size in sizes)
notebook.FEW_STEPS = (*notebook.FEW_STEPS[:4], *small, "--config.log.health=False")
"""


@pytest.fixture(scope="module")
def execute(work):
    """(name, last cell) -> the notebook with what its cells gave, run in a kernel
    without names of the notebook before."""
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=processes.PATIENCE_S,
        startup_timeout=processes.PATIENCE_S,
        resources={"metadata": {"path": str(work)}},
    )

    def run(name, last=None):
        book = client.nb = read(name)
        idents = [cell["id"] for cell in book.cells]
        if last is not None:
            del book.cells[idents.index(last) + 1 :]
        book.cells.insert(0, nbformat.v4.new_code_cell(PRELUDE, id="prelude"))
        client.execute(cleanup_kc=False)
        return book

    yield run
    client._cleanup_kernel()


def said(book, ident):
    """What cell `ident` printed."""
    outputs = next(cell for cell in book.cells if cell["id"] == ident)["outputs"]
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


def shown(book, ident):
    """The pictures that cell `ident` showed."""
    outputs = next(cell for cell in book.cells if cell["id"] == ident)["outputs"]
    data = [o["data"] for o in outputs if o["output_type"] == "display_data"]
    return [
        Image.open(io.BytesIO(base64.b64decode(d["image/png"]))).convert("L")
        for d in data
    ]


def many_greys(picture):
    """Whether something is drawn."""
    low, high = picture.getextrema()
    return high - low > 100 and len(picture.getcolors(256)) > 4


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder of the runs, as the first visit finds it; kernels inherit its name."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("work")
        patch.setenv("LITEVIT_SMOKE", "1")
        patch.setenv("LITEVIT_WORK", str(place))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        yield place


@pytest.fixture(scope="module")
def pretrained(execute):
    return execute("pretrain")


@pytest.fixture(scope="module")
def finetuned(execute, pretrained):
    return execute("finetune")


@pytest.fixture(scope="module")
def looked(execute, finetuned):
    return execute("look_inside")


def test_pretraining_shows_what_the_model_paints(work, pretrained):
    assert "done: step 4" in said(pretrained, "train")
    first, sheet = shown(pretrained, "reconstructions")
    drawn = work / "pretrain" / "pictures" / "reconstruction_0000004.png"
    assert sheet.tobytes() == Image.open(drawn).convert("L").tobytes()
    assert many_greys(sheet)
    assert first.tobytes() != sheet.tobytes()
    (curve,) = shown(pretrained, "curve")
    assert many_greys(curve)


def test_finetuning_starts_from_the_pretrained_run_and_tells_what_it_is_worth(
    work, finetuned
):
    config = json.loads((work / "finetune" / "config.json").read_text())
    assert config["init"] == str(work / "pretrain")
    numbers = re.findall(r"([\d.]+) % top-1", said(finetuned, "results"))
    recorded = [
        notebook.top1(work / run, evaluation)
        for run, evaluation in (
            ("finetune-probe", "knn"),
            ("finetune-probe", "test"),
            ("finetune", "test"),
        )
    ]
    assert [float(x) for x in numbers] == [round(x, 1) for x in recorded]
    assert all(0 <= x <= 100 for x in recorded)
    assert recorded[0] > 30  # ten classes: the digits are in the features
    assert many_greys(*shown(finetuned, "results"))
    assert (work / "finetune.safetensors").is_file()


def test_every_pixel_is_labelled_and_shown(work, finetuned):
    (sheet,) = shown(finetuned, "segment")
    drawn = work / "finetune-segment" / "pictures" / "segmentation_0000004.png"
    assert sheet.tobytes() == Image.open(drawn).convert("L").tobytes()
    assert many_greys(sheet)
    folder = work / "finetune-label-maps" / "pictures" / "label_maps"
    assert len(list(folder.glob("*.png"))) == 2 * 16
    overlays = shown(finetuned, "label-maps")
    assert len(overlays) == 4 and all(x.size == (48, 48) for x in overlays)


def test_looking_inside_compares_the_run_with_its_finetuning_and_its_start(
    work, looked
):
    found = json.loads((work / "look_inside" / "analysis.json").read_text())
    names = ["encoder", "finetuned", "untrained"]
    assert list(found["models"]) == names
    for ident, count in [
        ("maps-cls", 6),
        ("maps-center", 6),
        ("patches", 3),
        ("distance", 3),
        ("cka", 3),
    ]:
        pictures = shown(looked, ident)
        assert len(pictures) == count
        assert all(map(many_greys, pictures))


def test_a_lost_runtime_goes_on_from_the_last_checkpoint(work, looked, execute):
    """As it is left by a machine that vanished after its second step."""
    lost = work / "pretrain"
    for late in [lost / "checkpoints" / "4", lost / "evals", lost / "report"]:
        shutil.rmtree(late)
    before = (lost / "metrics.jsonl").read_text().splitlines()
    again = execute("pretrain", last="reconstructions")
    assert "resuming at step 2 of 4" in said(again, "train")
    assert "done: step 4" in said(again, "train")
    rows = (lost / "metrics.jsonl").read_text().splitlines()[len(before) :]
    logged = [json.loads(row) for row in rows]
    assert [row["step"] for row in logged if "loss" in row] == [3, 4]
    old = {row["step"]: row["loss"] for row in map(json.loads, before) if "loss" in row}
    new = {row["step"]: row["loss"] for row in logged if "loss" in row}
    assert new == {step: old[step] for step in (3, 4)}
    assert len(shown(again, "reconstructions")) == 2


@each
def test_a_notebook_holds_no_results_and_keeps_its_names(name):
    book = read(name)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    idents = [cell["id"] for cell in book.cells]
    assert all(re.fullmatch(r"[a-z-]+", ident) for ident in idents)
    text = (ROOT / "colabs" / f"{name}.ipynb").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


@each
def test_a_notebook_opens_with_a_badge_that_leads_to_itself(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown"
    (link,) = re.findall(
        r"\]\((https://colab\.research\.google\.com/github/[^)]*)\)", first.source
    )
    owner = re.search(r"github\.com/([^/]+/[^\"]+)\"", first_code(name))[1]
    path = f"colabs/{name}.ipynb"
    assert link == f"https://colab.research.google.com/github/{owner}/blob/main/{path}"
    assert (ROOT / path).is_file()


def first_code(name):
    return next(cell.source for cell in read(name).cells if cell.cell_type == "code")


@each
def test_the_first_cell_installs_once(name, tmp_path, monkeypatch):
    ran, there = [], {"libtpu"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there or None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", lambda args, check: ran.append(args))
    exec(first_code(name), {})
    root = str(tmp_path / "litevit")
    address = re.search(r'REPOSITORY = "(.*)"', first_code(name))[1]
    tested = "py311.txt" if sys.version_info < (3, 12) else "py312.txt"
    assert (ROOT / "constraints" / tested).is_file()
    assert ran == [
        ["git", "clone", "--quiet", "--depth=1", address, root],
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            f"{root}/constraints/{tested}",
            "--editable",
            f"{root}[tpu]",
        ],
    ]
    assert sys.path[0] == root
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("again"))
    exec(first_code(name), {})  # here it is installed


def test_settings_stand_in_one_form_and_nothing_is_small_unless_asked(monkeypatch):
    for name in NAMES:
        forms = [cell for cell in read(name).cells if "@param" in cell.source]
        assert [cell["id"] for cell in forms] == ["settings"]
        assert "\nSMOKE = False  # @param" in forms[0].source
    monkeypatch.delenv("LITEVIT_SMOKE", raising=False)
    assert not notebook.smoke()
    monkeypatch.setenv("LITEVIT_SMOKE", "0")
    assert not notebook.smoke()


def test_the_notebook_itself_leaves_jax_alone():
    code = "import sys, colabs.notebook; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


PROGRAM = """
import os, signal, sys, time
def stop(*_):
    print("saving", flush=True)
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
alone = os.getpgid(0) == os.getpid()  # what the kernel is sent does not reach it
print(sys.argv[1], "alone" if alone else "in the group", flush=True)
time.sleep(3600)
"""
DRIVER = """
import pathlib, sys
from colabs import notebook
notebook.ROOT = pathlib.Path(sys.argv[1])
try:
    notebook.main("--config=x")
except KeyboardInterrupt:
    print("stopped")
"""


def test_the_stop_button_reaches_the_command_once_and_lets_it_save(tmp_path):
    (tmp_path / "main.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert next(lines) == "$ python main.py --config=x\n"
        assert next(lines) == "--config=x alone\n"
        os.killpg(process.pid, signal.SIGINT)
        assert list(lines) == ["saving\n", "saved\n", "stopped\n"]
    assert process.returncode == 0


def test_a_command_that_fails_stops_the_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    (tmp_path / "main.py").write_text("import sys; sys.exit('no such thing')")
    with pytest.raises(RuntimeError, match="ended with code 1"):
        notebook.main("--config=x")
    assert "no such thing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("colab", "accelerator", "platforms"),
    [(True, False, "cpu"), (True, True, None), (False, False, None)],
)
def test_a_runtime_without_accelerator_uses_cpus(
    colab, accelerator, platforms, tmp_path, monkeypatch, capsys
):
    """Colab has JAX's plugin for GPUs where it has none, too."""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setattr(notebook, "on_colab", lambda: colab)
    monkeypatch.setattr(notebook.cpu, "has_accelerator", lambda: accelerator)
    (tmp_path / "main.py").write_text(
        "import os; print('on', os.environ.get('JAX_PLATFORMS'))"
    )
    notebook.main("--config=x")
    assert f"on {platforms}\n" in capsys.readouterr().out


def archive(path, names):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, picture.getvalue())


@pytest.mark.parametrize(
    ("names", "inner", "kept"),
    [
        (["a/1.png", "b/2.png"], "", ["a/1.png", "b/2.png"]),
        (
            ["my photos/a/1.png", "my photos/b/2.png"],
            "my photos",
            ["a/1.png", "b/2.png"],
        ),
        (["x/1.png", "__MACOSX/x/._1.png"], "x", ["1.png"]),
        (["train/a/1.png"], "", ["train/a/1.png"]),
        (["x/train/a/1.png", "x/test/a/2.png"], "x", ["train/a/1.png", "test/a/2.png"]),
    ],
)
def test_a_zip_file_becomes_the_folder_that_was_meant(tmp_path, names, inner, kept):
    archive(tmp_path / "my photos, 2.zip", names)
    for _ in range(2):  # unpacked once
        variant = notebook.images("my photos, 2.zip", tmp_path)
    kind, path = variant.split(",path=")
    assert (kind, "," in path) == ("data=folder", False)
    place = pathlib.Path(path)
    assert place.name == (inner or place.name)
    assert sorted(kept) == sorted(
        str(p.relative_to(place)) for p in place.rglob("*.png")
    )


def test_images_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"cut\.zip: not a whole zip file"):
        notebook.images("cut.zip", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"phtos: no such zip file or folder"):
        notebook.images("phtos", tmp_path)
    (tmp_path / "a,b").mkdir()
    with pytest.raises(ValueError, match="a path with a comma"):
        notebook.images("a,b", tmp_path)
    assert notebook.images("", tmp_path) == "digits"


def test_a_folder_in_drive_is_copied_to_the_disk_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "_DRIVE", tmp_path / "drive")
    photo = tmp_path / "drive" / "MyDrive" / "some photos" / "1.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"x")
    work = tmp_path / "work"
    for _ in range(2):
        path = notebook.images("some photos", work).removeprefix("data=folder,path=")
    assert path == str(work / "images" / "some_photos")
    assert (pathlib.Path(path) / "1.png").read_bytes() == b"x"


def test_weights_are_found_downloaded_once_or_missed_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine: no run that has saved"):
        notebook.pretrained("mine", tmp_path, smoke=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert notebook.find("mine", tmp_path) is None  # it has not saved yet
    (tmp_path / "mine" / "checkpoints" / "7").mkdir(parents=True)
    assert notebook.pretrained("mine", tmp_path, smoke=True) == tmp_path / "mine"

    (served := tmp_path / "served").mkdir()
    (served / "tiny.pth").write_bytes(b"weights")
    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/tiny.pth?download=true"
        place = notebook.find(address, tmp_path)
        server.shutdown()
    assert place.name == "tiny.pth"
    assert place.read_bytes() == b"weights"
    assert notebook.find(address, tmp_path) == place  # nobody serves it now


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
