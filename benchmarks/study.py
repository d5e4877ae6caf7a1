"""Compares all pre-training methods on one small encoder: docs/results.md.

    python benchmarks/study.py --data=digits --out=runs/study-digits
    python benchmarks/study.py --data=DIR --out=runs/study-cifar

`DIR` holds CIFAR-10 as JPEG files, `train/<class>/*.jpg` and `test/<class>/*.jpg`. For
each seed it pre-trains with MAE, MoCo v3, distilled MAE (teacher: a wider MAE of this
study), its decoupled form and labels. Then it evaluates every encoder, and a random
one: a linear probe and k nearest neighbours on averaged patch tokens, and fine-tuning
on 10 images of each class. All are ordinary runs of main.py under --out, `--jobs` at a
time, each on its own cores; a second call continues where the first stopped. Prints a
table in Markdown and writes every figure to results.json in --out.

    python benchmarks/study.py --data=DIR --out=runs/study-cifar --table=labels

fine-tunes the same encoders, and a random one, on all, 10 % and 1 % of the labels;
writes labels.json, and the curves of the test images as labels.png.

    python benchmarks/study.py --data=DIR --out=runs/claim --table=claim

asks what the paper claims, in miniature: images of 20 pixels in patches of 4, a student
of 0.9 million parameters, a teacher of 4.8. It fine-tunes with all, 10 % and 1 % of the
labels, and on another task with 10 images a class: the four vehicles, for which the
supervised row has learned the six animals. Side questions have one seed and one column
each: which signal of the teacher helps (hidden states or relations in place of
attention, a middle layer, a teacher of the student's size), and whether the animals,
learned for longer, help more. `--scale=0.1` trains a tenth of the epochs.

    python benchmarks/study.py --data=digits --out=runs/check --check

repeats the cheapest row, random parameters (or those of `--rows=mae,...`), and compares
it with docs/results.md: exit code 1 if a mean or an end of a range differs by more than
`--tolerance`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.md"

# Method -> title, in the order of the table.
METHODS = {
    "random": "random initialisation",
    "supervised": "supervised",
    "mocov3": "MoCo v3",
    "mae": "MAE",
    "distill": "D-MAE",
    "distill_d2": "D2-MAE",
    "distill_hidden": "D-MAE of hidden states",
    "distill_relations": "D-MAE of relations",
    "distill_middle": "D-MAE of a middle layer",
    "distill_weak": "D-MAE of a teacher of its size",
    "supervised_long": "supervised, 20 epochs",
}
# Table -> its rows. An encoder trained on all labels says nothing about fewer labels.
ROWS = {
    "methods": ("random", "supervised", "mocov3", "mae", "distill", "distill_d2"),
    "labels": ("random", "mocov3", "mae", "distill", "distill_d2"),
    "claim": (
        *("random", "supervised", "mae", "distill", "distill_hidden"),
        *("distill_relations", "distill_middle", "distill_weak", "supervised_long"),
    ),
}
# Rows that ask a side question, with one seed -> their only evaluation.
ASIDE = {
    "distill_hidden": "hundredth",
    "distill_relations": "hundredth",
    "distill_middle": "hundredth",
    "distill_weak": "hundredth",
    "supervised_long": "other",
}
# Table -> evaluation -> (evaluator whose last top-1 counts, column).
COLUMNS = {
    "methods": {
        "probe": (("test", "linear probe"), ("knn", "k-NN")),
        "shots": (("test", "10-shot fine-tuning"),),
    },
    "labels": {
        "all": (("test", "all labels"),),
        "tenth": (("test", "10 %"),),
        "hundredth": (("test", "1 %"),),
    },
    "claim": {
        "all": (("test", "all labels"),),
        "tenth": (("test", "10 %"),),
        "hundredth": (("test", "1 %"),),
        "other": (("test", "another task, 10 images a class"),),
    },
}
# Evaluations that a row leaves out: the supervised one of `claim` knows these labels.
LEFT_OUT = {("claim", "supervised"): ("all", "tenth", "hundredth")} | {
    ("claim", method): tuple(name for name in COLUMNS["claim"] if name != only)
    for method, only in ASIDE.items()
}
# Table -> data set -> its heading in docs/results.md.
HEADINGS = {
    "methods": {"digits": "Digits", "cifar": "CIFAR-10"},
    "labels": {"cifar": "Fine-tuning with all and with few labels"},
    "claim": {"cifar": "The claim in miniature"},
}

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings for a data set.

    Attributes:
      variant: of every recipe, behind the colon.
      common: fields of every run.
      encoder: fields of the encoder; {} takes those of the recipes.
      methods: pre-training run -> its own fields.
      evaluations: evaluation -> its own fields.
      variants: run -> its own variant, if it is another one.
    """

    variant: str
    common: Fields
    encoder: Fields
    methods: dict[str, Fields]
    evaluations: dict[str, Fields]
    variants: dict[str, str] = dataclasses.field(default_factory=dict)


_HOST = {"data.cache": "off"}  # as the tables of docs/results.md were made
# MAE's protocol at its peak of 6.4, on whole images: 1500 updates of 64.
_PROBE = {
    "batch_size": 64,
    "steps": 1500,
    "lr.base": 25.6,
    "data.crop_scale": "1.0,1.0",
    "data.crop_ratio": "1.0,1.0",
    "log.health": False,
}


def digits() -> Setting:
    """The recipes' own small forms; the more expensive methods see fewer images."""
    return Setting(
        variant="digits",
        common=_HOST,
        encoder={},
        methods={
            "teacher": {"epochs": 100},
            "mae": {"epochs": 100},
            "distill": {"epochs": 100},
            "distill_d2": {"epochs": 100},
            "mocov3": {"epochs": 50},
            "supervised": {"epochs": 50},
        },
        evaluations={"probe": _PROBE, "shots": {}},
    )


_CIFAR = {
    "data.image_size": 32,
    "data.eval_crop_fraction": 1.0,
    "data.crop_scale": "0.2,1.0",
    "data.threads": 2,
}


def cifar(folder: str) -> Setting:
    """CIFAR-10 in patches of 8 pixels: 16 patches an image."""
    decoder = {
        "objective.decoder.width": 32,
        "objective.decoder.num_heads": 2,
        "evals.reconstruction.every_steps": 0,
        "lr.base": 1.5e-3,
        "lr.warmup_epochs": 1.0,
        "epochs": 5,
    }
    moco = {
        "objective.mlp_dim": 256,
        "objective.embed_dim": 64,
        "lr.base": 1.5e-3,
        "lr.warmup_epochs": 0.5,
        "epochs": 2,
    }
    labels = {
        "lr.base": 1e-3,
        "lr.warmup_epochs": 0.5,
        "optimizer.layer_decay": 1.0,
        "data.randaugment.layers": 0,
        "epochs": 4,
    }
    return Setting(
        variant=f"data=folder,path={folder}",
        common=_CIFAR | _HOST,
        encoder={
            "objective.encoder.patch_size": 8,
            "objective.encoder.width": 64,
            "objective.encoder.depth": 4,
            "objective.encoder.num_heads": 4,
        },
        methods={
            "teacher": decoder | {"objective.encoder.width": 128},
            "mae": decoder,
            "distill": decoder,
            "distill_d2": decoder | {"objective.decoupled": 3},
            "mocov3": moco,
            "supervised": labels,
        },
        evaluations={
            # A fifth of the labelled images: 10,000.
            "probe": _PROBE | {"data.fraction": 0.2},
            "shots": {
                "batch_size": 50,
                "steps": 200,
                "lr.base": 5e-3,
                "data.randaugment.layers": 0,
                "evals.test.every_steps": 0,
            },
        }
        | _shares({"all": (1.0, 1170), "tenth": (0.1, 585), "hundredth": (0.01, 240)}),
    )


def claim(folder: str, out: pathlib.Path, scale: float = 1.0) -> Setting:
    """CIFAR-10 in patches of 4 pixels, and a teacher five times the student's size."""

    def epochs(number: int) -> int:
        return max(round(number * scale), 1)

    student = {
        "objective.decoder.width": 64,
        "objective.decoder.num_heads": 4,
        "evals.reconstruction.every_steps": 0,
        "objective.decoder.depth": 1,
        "batch_size": 256,
        "lr.base": 1e-3,
        "lr.warmup_epochs": 1.0 * scale,
        "epochs": epochs(6),
    }
    large = {
        "objective.encoder.width": 224,
        "objective.encoder.depth": 8,
        "objective.encoder.num_heads": 8,
    }
    # Attention layers count from 1, hidden states from 0: the last of either side.
    distilled = student | {"objective.pairs": "((6,8),)"}
    labels = {
        "lr.base": 1e-3,
        "lr.warmup_epochs": 1.0 * scale,
        "batch_size": 256,
        "optimizer.layer_decay": 1.0,
        "data.randaugment.layers": 0,
        "epochs": epochs(6),
    }
    shots = {"batch_size": 40, "steps": 200, "lr.base": 5e-3}
    shots |= {"data.randaugment.layers": 0, "evals.test.every_steps": 0}
    some = f"data=folder,path={folder},labels={out}"
    return Setting(
        variant=f"data=folder,path={folder}",
        common=_CIFAR | {"data.image_size": 20},
        encoder={
            "objective.encoder.patch_size": 4,
            "objective.encoder.width": 112,
            "objective.encoder.depth": 6,
            "objective.encoder.num_heads": 4,
        },
        methods={
            "teacher": student | large | {"epochs": epochs(20)},
            "mae": student,
            "distill": distilled,
            "distill_hidden": distilled | {"objective.target": "hidden"},
            "distill_relations": distilled | {"objective.target": "relations"},
            "distill_middle": distilled | {"objective.pairs": "((3,4),)"},
            "distill_weak": student | {"objective.pairs": "((6,6),)"},
            "supervised": labels | _LISTED,
            "supervised_long": labels | _LISTED | {"epochs": epochs(20)},
        },
        evaluations=_shares(
            {"all": (1.0, 390), "tenth": (0.1, 240), "hundredth": (0.01, 160)}, tests=2
        )
        | {"other": shots | _LISTED},
        variants={
            "supervised": f"{some}/animals.csv",
            "supervised_long": f"{some}/animals.csv",
            "other": f"{some}/vehicles.csv,shots=10",
        },
    )


_LISTED = {"data.unlisted": "leave_out"}
VEHICLES = ("airplane", "automobile", "ship", "truck")


def write_tasks(folder: str, out: pathlib.Path) -> None:
    """Writes the tables of the animals and the vehicles of CIFAR-10 into `out`."""
    rows: dict[str, list[str]] = {"animals": [], "vehicles": []}
    for path in sorted(pathlib.Path(folder).glob("*/*/*")):
        split, label, name = path.parts[-3:]
        kind = "vehicles" if label in VEHICLES else "animals"
        rows[kind].append(f"{split}/{label}/{name},{label},{split}")
    if not all(rows.values()):
        sys.exit(f"--data={folder}: expected train/CLASS/*.jpg and test/CLASS/*.jpg")
    for kind, lines in rows.items():
        text = "\n".join(["path,label,split", *lines, ""])
        (out / f"{kind}.csv").write_text(text)


def _shares(steps: dict[str, tuple[float, int]], tests: int = 5) -> dict[str, Fields]:
    """Fine-tuning on a share of the labels: evaluation -> (share, updates)."""
    return {
        name: {
            "batch_size": 128,
            "data.fraction": share,
            "steps": count,
            "epochs": 10,  # for the warm-up alone: a tenth of the updates
            "lr.base": 5e-3,
            "lr.warmup_epochs": 1.0,
            "data.randaugment.layers": 0,
            "evals.test.every_steps": count // tests,  # the last at the end
            "log.health": False,
        }
        for name, (share, count) in steps.items()
    }


_RECIPES = {
    "teacher": "mae_base",
    "mae": "mae_tiny",
    "mocov3": "mocov3_tiny",
    "distill": "mae_tiny_distill",
    "distill_d2": "mae_tiny_distill_d2",
    "supervised": "deit_tiny",
}
_TEACHERS = {"distill_weak": "mae"}


def _recipe_of(method: str) -> str:
    kind = method if method in _RECIPES else method.partition("_")[0]
    return _RECIPES[kind]


def _teacher_of(method: str) -> str | None:
    """Returns the run whose encoder a method follows."""
    if not method.startswith("distill"):
        return None
    return _TEACHERS.get(method, "teacher")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of main.py: directory under --out, arguments, and runs that it needs."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


def methods_of(table: str, asked: list[str] | None = None) -> list[str]:
    """The rows of a table, or only those that were asked for."""
    known = list(ROWS[table])
    if unknown := sorted(set(asked or ()) - set(known)):
        sys.exit(f"--rows={','.join(unknown)}: expected some of {', '.join(known)}")
    return [method for method in known if not asked or method in asked]


def repeats(table: str, method: str, seeds: int) -> int:
    """The number of seeds of a row."""
    return 1 if (table, method) in LEFT_OUT and method in ASIDE else seeds


def plan(
    setting: Setting, table: str, seeds: int, out: pathlib.Path, methods: list[str]
) -> list[Run]:
    """All runs of a table's rows, each after those that it needs."""
    runs = []
    if "random" in methods:
        runs.append(_shape(setting, out))
    # Side questions last: a study that is stopped has its main rows.
    for rows in (
        [method for method in methods if method not in ASIDE],
        [method for method in methods if method in ASIDE],
    ):
        teachers = dict.fromkeys(filter(None, map(_teacher_of, rows)))
        runs += [_pretraining(setting, teacher, 0, out) for teacher in teachers]
        asked = [
            (method, seed)
            for seed in range(seeds)
            for method in rows
            if seed < repeats(table, method, seeds)
        ]
        runs += [
            _pretraining(setting, method, seed, out)
            for method, seed in asked
            if method != "random"
        ]
        runs += [
            _evaluation(setting, name, method, seed, out)
            for method, seed in asked
            for name in COLUMNS[table]
            if name not in LEFT_OUT.get((table, method), ())
        ]
    return list({run.name: run for run in runs}.values())  # a teacher may be a row, too


def _flags(recipe: str, variant: str, **fields: Any) -> tuple[str, ...]:
    given = {name: value for name, value in fields.items() if value is not None}
    return (
        f"--config=configs/{recipe}.py{':' if variant else ''}{variant}",
        "--config.log.writers=('jsonl',)",
        "--config.log.report=False",
        *(f"--config.{name}={value}" for name, value in given.items()),
    )


def _pretraining(setting: Setting, method: str, seed: int, out: pathlib.Path) -> Run:
    fields = setting.common | setting.encoder | setting.methods[method]
    teacher = _teacher_of(method)
    after = (f"{teacher}-0",) if teacher else ()
    if after:
        fields["teacher"] = out / after[0]
    variant = setting.variants.get(method, setting.variant)
    arguments = _flags(_recipe_of(method), variant, seed=seed, **fields)
    return Run(f"{method}-{seed}", arguments, after)


def _shape(setting: Setting, out: pathlib.Path) -> Run:
    """MAE of one update, from which random encoders take sizes and data (`like`)."""
    fields = setting.common | setting.encoder | setting.methods["mae"]
    fields |= {"steps": 1}
    return Run("shape", _flags(_RECIPES["mae"], setting.variant, **fields))


def _evaluation(
    setting: Setting, name: str, method: str, seed: int, out: pathlib.Path
) -> Run:
    fields = setting.common | setting.evaluations[name] | {"seed": seed}
    before = "shape" if method == "random" else f"{method}-{seed}"
    if method == "random":
        fields |= {"init": "random", "like": out / before}
    else:
        fields["init"] = out / before
    recipe, variant = "finetune", setting.variants.get(name, setting.variant)
    if name == "probe":
        recipe = "linear_probe"
        fields["objective.pool"] = "avg"
    else:
        variant += ",shots=10" if name == "shots" else ""
        fields["data.subset_seed"] = seed
        if method == "random" and name != "shots":  # nothing that must be kept
            fields["optimizer.layer_decay"] = 1.0
    return Run(f"{name}-{method}-{seed}", _flags(recipe, variant, **fields), (before,))


class Runner:
    """Runs a plan, `jobs` runs at a time, each on its own cores."""

    def __init__(self, runs: list[Run], out: pathlib.Path, jobs: int):
        self._out, self._jobs = out, jobs
        self._waiting = list(runs)
        self._ended: set[str] = set()
        self._change = threading.Condition()
        self.failed: list[str] = []

    def run(self) -> None:
        """Runs everything; afterwards `failed` names the runs that failed."""
        cores = sorted(os.sched_getaffinity(0))
        shares = [cores[i :: self._jobs] or cores for i in range(self._jobs)]
        threads = [threading.Thread(target=self._work, args=(s,)) for s in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, cores: list[int]) -> None:
        while run := self._next():
            try:
                if not self._one(run, cores):
                    self.failed.append(run.name)
            finally:
                with self._change:
                    self._ended.add(run.name)
                    self._change.notify_all()

    def _next(self) -> Run | None:
        """Waits for a run whose needs are met, in order; None at the end."""
        with self._change:
            while self._waiting and not self.failed:
                for run in self._waiting:
                    if self._ended.issuperset(run.after):
                        self._waiting.remove(run)
                        return run
                self._change.wait()
        return None

    def _one(self, run: Run, cores: list[int]) -> bool:
        workdir, log = self._out / run.name, self._out / f"{run.name}.txt"
        if (self._out / f"{run.name}.seconds").exists():
            return True
        command = [sys.executable, "main.py", *run.arguments, f"--workdir={workdir}"]
        cache = self._out / ".cache"
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        start = time.monotonic()
        with open(log, "a") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            os.sched_setaffinity(process.pid, cores)
            code = process.wait()
        seconds = time.monotonic() - start
        print(f"{run.name}: code {code}, {seconds:.0f} s", flush=True)
        if code:
            print(f"  {' '.join(command)}\n  see {log}", flush=True)
            return False
        (self._out / f"{run.name}.seconds").write_text(f"{seconds:.1f}")
        return True


def collect(
    table: str, seeds: int, out: pathlib.Path, methods: list[str]
) -> dict[str, Any]:
    """Last top-1 (percent) of each seed, by method and column."""
    rows: dict[str, Any] = {}
    for method in methods:
        rows[method] = row = {}
        for name, columns in COLUMNS[table].items():
            for evaluator, column in columns:
                if name in LEFT_OUT.get((table, method), ()):
                    row[column] = []
                    continue
                paths = (
                    out / f"{name}-{method}-{s}/evals/{evaluator}/result.json"
                    for s in range(repeats(table, method, seeds))
                )
                row[column] = [json.loads(p.read_text())["last"]["top1"] for p in paths]
    return rows


def describe(table: dict[str, Any]) -> str:
    """Mean and spread (smallest to largest) over seeds as a Markdown table."""
    columns = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for method, row in table.items():
        cells = [_cell(*_spread(x)) if x else "" for x in row.values()]
        lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest."""
    return statistics.mean(values), min(values), max(values)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.1f} ({low:.1f}..{high:.1f})"


def written(text: str, heading: str) -> dict[str, dict[str, tuple[float, ...]]]:
    """Reads a page's table: row title -> column -> (mean, smallest, largest).

    Args:
      text: the page in Markdown.
      heading: of the section, whose first table is read.

    Raises:
      ValueError: no such section, or no table in it.
    """
    _, heading_line, section = text.partition(f"\n## {heading}\n")
    own = section.partition("\n## ")[0].splitlines()
    begun = itertools.dropwhile(lambda line: line[:1] != "|", own)
    lines = [*itertools.takewhile(lambda line: line[:1] == "|", begun)]
    if not heading_line or len(lines) < 3:
        raise ValueError(f"{RESULTS}: no section '## {heading}' with a table")
    head, _, *rows = ([cell.strip() for cell in x.strip("|").split("|")] for x in lines)
    return {
        title: {
            column: tuple(map(float, re.findall(r"\d+\.\d+", cell)))
            for column, cell in zip(head[1:], cells, strict=True)
        }
        for title, *cells in rows
    }


def compare(
    rows: dict[str, Any], page: dict[str, Any], tolerance: float
) -> tuple[str, bool]:
    """Compares each cell with the page's; returns text and whether all are close."""
    lines, same = [], True
    for method, row in rows.items():
        for column, values in row.items():
            if not values:  # an evaluation that the row leaves out
                continue
            before, now = page[METHODS[method]][column], _spread(values)
            far = max(abs(a - b) for a, b in zip(before, now, strict=True))
            close = far <= tolerance + 0.05  # the page has one digit
            same &= close
            lines.append(
                f"{METHODS[method]}, {column}: {_cell(*before)} in {RESULTS.name}, "
                f"{_cell(*now)} now{'' if close else ': DIFFERENT'}"
            )
    return "\n".join(lines), same


def curve(name: str, method: str, seeds: int, out: pathlib.Path) -> list[Any]:
    """(step, top-1 in percent of every seed) of the test images, in order of steps."""
    seen: dict[int, list[float]] = {}
    for seed in range(seeds):
        path = out / f"{name}-{method}-{seed}/metrics.jsonl"
        for record in map(json.loads, path.read_text().splitlines()):
            if "test/top1" in record:
                seen.setdefault(record["step"], []).append(record["test/top1"])
    return sorted(seen.items())


def draw(table: str, seeds: int, out: pathlib.Path) -> None:
    """Draws labels.png or claim.png: test images, one panel per share of labels."""
    from matplotlib.figure import Figure  # late: its import takes long

    names = COLUMNS["labels"]  # those of `claim`, too
    figure = Figure(figsize=(10, 3.4))
    panels = figure.subplots(1, len(names), sharey=True)
    for panel, (name, ((_, title),)) in zip(panels, names.items(), strict=True):
        for method in methods_of(table):
            if method in ASIDE or name in LEFT_OUT.get((table, method), ()):
                continue
            points = curve(name, method, seeds, out)
            steps = [step for step, _ in points]
            mean = [statistics.mean(values) for _, values in points]
            (line,) = panel.plot(steps, mean, marker="o", ms=3, label=METHODS[method])
            low, high = zip(*((min(v), max(v)) for _, v in points), strict=True)
            panel.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
        panel.set(title=title, xlabel="fine-tuning step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 on the test images, %")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    path = out / f"{table}.png"
    figure.savefig(path, dpi=110)
    print(f"curves: {path}")


def define_flags() -> None:
    """Defines the program's flags; not at import, which tests do."""
    flags.DEFINE_string("data", "digits", "'digits', or the folder of CIFAR-10.")
    flags.DEFINE_string("out", None, "Folder of all runs.", required=True)
    flags.DEFINE_integer("seeds", 3, "Number of repetitions of everything.")
    flags.DEFINE_enum("table", "methods", [*COLUMNS], "The table to measure and print.")
    flags.DEFINE_list("rows", None, "Methods; none: all, or 'random' with --check.")
    flags.DEFINE_boolean("check", False, "Compare with docs/results.md.")
    # An image of the digits' test split is 0.28 points; other CPUs round otherwise.
    flags.DEFINE_float("tolerance", 0.3, "Largest difference for --check, in points.")
    flags.DEFINE_float("scale", 1.0, "Of the epochs of --table=claim.", lower_bound=0)
    flags.DEFINE_integer("jobs", 2, "Runs at the same time.")
    flags.DEFINE_boolean("dry_run", False, "Print the commands, run nothing.")


def setting_of(table: str, data: str, out: pathlib.Path, scale: float) -> Setting:
    """Returns the settings for a table on the digits or on a folder."""
    if data == "digits":
        return digits()
    folder = str(pathlib.Path(data).absolute())
    return claim(folder, out, scale) if table == "claim" else cifar(data)


def main(_: list[str]) -> None:
    out = pathlib.Path(FLAGS.out).absolute()
    table = FLAGS.table
    setting = setting_of(table, FLAGS.data, out, FLAGS.scale)
    if absent := [n for n in COLUMNS[table] if n not in setting.evaluations]:
        sys.exit(f"--table={table} --data={FLAGS.data}: has no {', '.join(absent)}")
    methods = methods_of(table, FLAGS.rows or (["random"] if FLAGS.check else None))
    page = {}
    if FLAGS.check:
        name = "digits" if FLAGS.data == "digits" else "cifar"
        page = written(RESULTS.read_text(), HEADINGS[table][name])
    runs = plan(setting, table, FLAGS.seeds, out, methods)
    if FLAGS.dry_run:
        for run in runs:
            command = [
                "python",
                "main.py",
                *run.arguments,
                f"--workdir={out / run.name}",
            ]
            print(" ".join(command))
        return
    if FLAGS.check and all((out / f"{run.name}.seconds").exists() for run in runs):
        sys.exit(f"--out={out}: its runs are finished already; give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    if table == "claim":
        write_tasks(FLAGS.data, out)
    runner = Runner(runs, out, FLAGS.jobs)
    runner.run()
    if runner.failed:
        sys.exit(f"failed: {', '.join(runner.failed)}; run again to go on")
    rows = collect(table, FLAGS.seeds, out, methods)
    print(describe(rows))
    if FLAGS.check:
        text, same = compare(rows, page, FLAGS.tolerance)
        print(text)
        sys.exit(0 if same else 1)
    if methods != methods_of(table):
        return
    file = "results.json" if table == "methods" else f"{table}.json"
    (out / file).write_text(json.dumps(rows, indent=2))
    if table != "methods":
        draw(table, FLAGS.seeds, out)


if __name__ == "__main__":
    define_flags()
    app.run(main)
