"""The layer study: what each part starts from, what is frozen, and going on."""

import contextlib
import json
import signal
import types

import jax
import numpy as np
import pytest

from litevit_jax import checkpoint, sharding
from litevit_jax.jobs import evaluate, layer_study, train
from litevit_jax.train import loop
from litevit_jax.warm_start import read
from tests import jobs

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


def config(checkpoints, **overrides):
    fields = {"init": str(checkpoints / "0"), "study__poor": 0.5, "steps": 2}
    fields |= {"init_donor": str(checkpoints / "1")}
    return jobs.config("layer_study", "digits", **(fields | overrides))


@pytest.fixture
def runs(monkeypatch):
    """Runs in place of real ones, by how many blocks are loaded; `stop`: which end."""

    class Runs(list):
        def __init__(self):
            self.stop, self.probes = (), []

    asked = Runs()

    def run(made, workdir):
        asked.append((made, workdir))
        if len(asked) in asked.stop:
            return loop.RunOutcome(1, {}, signal.SIGTERM)
        top1 = 50 + 10 * made.data.fraction + len(made.init_load)
        last = {"step": 2, "top1": float(top1), "n": 359}
        return loop.RunOutcome(2, {"test": {"last": last}})

    def probe(made, workdir):
        asked.probes.append((made, workdir))
        rows = [{"block": i, "linear": 9.0 + i, "knn": 19.0 + i} for i in (1, 2)]
        last = {"n": 359, "select_n": 100, "table": rows, "pool": "cls"}
        # The class token is better on the test images, the patches on those held out.
        token = last | {"top1": 11.0, "block": 2, "select_top1": 12.0}
        mean = last | {"top1": 10.0, "block": 1, "select_top1": 13.0, "pool": "avg"}
        return {"layers": {"last": token}, "layers_avg": {"last": mean}}

    job = types.SimpleNamespace(total_steps=2)
    for module in (train, evaluate):  # what they refuse has a test of its own
        monkeypatch.setattr(module, "prepare", lambda *_, **__: job)
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(evaluate, "run", probe)
    return asked


@pytest.fixture(scope="module")
def study(checkpoints, tmp_path_factory):
    return layer_study.Study(
        config(checkpoints), tmp_path_factory.mktemp("s") / "study"
    )


def test_every_part_runs_once_and_the_same_run_not_twice(runs, checkpoints, tmp_path):
    outcome = layer_study.Study(config(checkpoints), tmp_path / "run").run()
    names = [workdir.name for _, workdir in runs]
    rich = [n.removeprefix("rich-") for n in names if n.startswith("rich-")]
    assert rich == [
        "random-00",
        *("keep_first-00", "keep_first-01", "keep_first-02"),
        "keep_last-01",  # none kept, and all kept, are those above
        *("freeze-01", "freeze-02"),
        *("swap-00", "swap-01"),
    ]
    assert len(names) == 2 * len(rich) == len(set(names))
    assert {made.job for made, _ in runs} == {"train"}
    assert [made.data.fraction for made, _ in runs] == [1.0] * 9 + [0.5] * 9
    found = json.loads((tmp_path / "run" / "layers.json").read_text())
    assert len(found["points"]) == 20 and found["depth"] == 2
    page = outcome.page.read_text()
    assert page.count("<svg") == 6 and "With many images" in page
    report = json.loads((outcome.page.parent / "report.json").read_text())
    drawn = {figure["name"]: figure["data"] for figure in report["figures"]}
    kept = dict(zip(*drawn["layers-keep_first"]["rich"].values(), strict=True))
    for kind, k, same in (
        *(("keep_last", 0, 0), ("keep_last", 2, 2)),
        *(("freeze", 0, 2), ("swap", 2, 2)),
    ):
        rich = drawn[f"layers-{kind}"]["rich"]
        assert rich["k"] == [0, 1, 2] and rich["values"][k] == kept[same]
    layer_study.Study(config(checkpoints), tmp_path / "run").run()
    assert len(runs) == 18 and len(runs.probes) == 2


def test_blocks_are_probed_with_the_images_of_each_setting(runs, checkpoints, tmp_path):
    made = config(checkpoints, study__kinds=("probe",))
    outcome = layer_study.Study(made, tmp_path / "run").run()
    assert [probe.data.fraction for probe, _ in runs.probes] == [1.0, 0.5]
    assert [place.name for _, place in runs.probes] == [
        "rich-probe-00",
        "poor-probe-00",
    ]
    assert {probe.init for probe, _ in runs.probes} == {str(checkpoints / "0")}
    assert [list(probe.evals) for probe, _ in runs.probes] == [
        ["layers", "layers_avg"]
    ] * 2
    row = "probe, mean of the patches  1  10.00  359"
    assert outcome.table.count(row) == 2
    assert (
        "With few images a linear probe reads most from the mean of the patches after "
        "block 1: 10.0 % of 359 test images, standard error 1.6; chosen by 100 "
        "training images held out, of which it tells 13.0 %."
    ) in outcome.page.read_text()
    report = json.loads((outcome.page.parent / "report.json").read_text())
    drawn = {figure["name"]: figure["data"]["series"] for figure in report["figures"]}
    assert list(drawn) == ["blocks-layers", "blocks-layers_avg"]
    want = {"block": [1, 2], "linear": [10.0, 11.0], "knn": [20.0, 21.0]}
    assert drawn["blocks-layers"] == {"rich": want, "poor": want}


def test_a_study_goes_on_where_it_was_stopped(runs, checkpoints, tmp_path):
    runs.stop = (3,)
    kinds = {"study__kinds": ("keep_first",)}
    outcome = layer_study.Study(config(checkpoints, **kinds), tmp_path / "run").run()
    assert outcome.signal == signal.SIGTERM and len(runs) == 3
    assert "6 of 8 parts are not finished" in outcome.page.read_text()
    outcome = layer_study.Study(config(checkpoints, **kinds), tmp_path / "run").run()
    assert outcome.signal is None
    assert len(runs) == 9 and runs[3][1] == runs[2][1]
    # More parts may be asked of the same study, other data may not.
    layer_study.Study(
        config(checkpoints, study__kinds=("freeze",)), tmp_path / "run"
    ).run()
    assert len(runs) == 13
    with pytest.raises(ValueError, match=r"study.poor: 0.5 -> 0.25"):
        layer_study.Study(
            config(checkpoints, study__poor=0.25, **kinds), tmp_path / "run"
        ).run()


def begun(study, kind, k, tmp_path, *, trains=False):
    """(job, initial parameters by path) of a part."""
    made = study.config_of(layer_study.Part(kind, k, "rich"))
    with contextlib.nullcontext() if trains else jobs.without_steps():
        job = train.prepare(made, tmp_path)
    return job, checkpoint.flatten(jax.device_get(job.create().params))


def origin(params, checkpoints):
    """For each block, and the embeddings, whose parameters they are."""
    found = {}
    for part in ("patch_embed", "blocks_0", "blocks_1"):
        name = f"encoder/{part}/kernel"
        if part != "patch_embed":
            name = f"encoder/{part}/attn/qkv/kernel"
        found[part] = "new"
        for seed in "01":
            theirs = read.read_params(str(checkpoints / seed)).params
            if np.array_equal(params[name], theirs[name]):
                found[part] = seed
    return tuple(found.values())


@pytest.mark.parametrize(
    ("kind", "k", "want"),
    [
        ("random", 0, ("new", "new", "new")),
        ("keep_first", 0, ("0", "new", "new")),
        ("keep_first", 1, ("0", "0", "new")),
        ("keep_first", 2, ("0", "0", "0")),
        ("keep_last", 1, ("0", "new", "0")),
        ("freeze", 1, ("0", "0", "0")),
        ("swap", 0, ("0", "1", "1")),
        ("swap", 1, ("0", "0", "1")),
    ],
)
def test_a_part_starts_from_the_blocks_that_it_says(
    kind, k, want, study, checkpoints, tmp_path
):
    _, params = begun(study, kind, k, tmp_path)
    assert origin(params, checkpoints) == want


def test_frozen_blocks_and_embeddings_never_change(study, tmp_path):
    job, before = begun(study, "freeze", 1, tmp_path, trains=True)
    state = job.create()
    stream = job.stream(0)
    for _ in range(2):  # the first update has a learning rate of 0
        batch = sharding.global_batch(next(stream), job.mesh)
        state, _ = job.step(state, batch)
    stream.close()
    after = checkpoint.flatten(jax.device_get(state.params))
    moved = {n for n, value in after.items() if not np.array_equal(value, before[n])}
    assert moved and all(n.startswith(("encoder/blocks_1/", "head/")) for n in moved)
    assert any(n.startswith("encoder/blocks_1/") for n in moved)


@pytest.mark.parametrize("poor", [0.5, 0.02])  # of more and of less than a batch
def test_few_images_have_as_many_updates(poor, checkpoints, tmp_path):
    study = layer_study.Study(
        config(checkpoints, steps=None, study__kinds=(), study__poor=poor),
        tmp_path / "study",
    )
    parts = {s: layer_study.Part("keep_first", 2, s) for s in ("rich", "poor")}
    with jobs.without_steps():
        many, few = (
            train.prepare(study.config_of(part), tmp_path / name, begin=False)
            for name, part in parts.items()
        )
    assert few.config["derived"]["train_examples"] == round(1438 * poor)
    assert few.total_steps == many.total_steps > 20
    warmup = [job.config["derived"]["warmup_steps"] for job in (many, few)]
    assert warmup[0] == warmup[1] > 2
    saved = json.loads((tmp_path / "study" / "config.json").read_text())
    assert saved["derived"]["total_steps"] == many.total_steps


def test_what_no_part_could_do_is_refused(checkpoints, tmp_path):
    for fields, message in (
        (
            {"study__kinds": ("keep",)},
            r"study.kinds 'keep' unknown; did you mean keep_",
        ),
        ({"study__depths": (3,)}, r"study.depths=\(3,\): the encoder has 2 blocks"),
        ({"study__poor": 0.0}, r"study.poor=0.0; expected a share"),
        (
            {"study__poor": 3 / 1438, "study__kinds": ("probe",)},
            r"--config.study.poor=0.002.* of the training images: .* nothing to choose",
        ),
        ({"study__metric": "loss"}, r"study.metric 'loss' unknown; .*top1, mean_per"),
        (
            {"init_donor": jobs.teacher(), "study__kinds": ("swap",)},
            r"init_donor=.*: its encoder has width=32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            layer_study.Study(config(checkpoints, **fields), tmp_path / "study")
    assert not (tmp_path / "study").exists()
