"""Training steps compiled for one TPU v5e or one H100: memory traffic, memory, cycles.

    pip install -e '.[plan]'
    python benchmarks/compiled_step.py --out=compiled_step
    pip install -e '.[cuda12]'
    python benchmarks/compiled_step.py --out=compiled_step --target=h100

It needs no TPU or GPU, and **nothing is timed**: the numbers are the compiler's own
account of its program. For MAE-Tiny, D-MAE-Tiny under a MAE-Base teacher, and
fine-tuning, at 224 px, it compiles the step that training runs (unchanged recipes:
`ours`) and the plain port of plain_step.py (`plain`), and prints for each:

* for a TPU, cycles per image: the compiler's estimate, summed over the program and
  through loops; it has no estimate for gathers and sorts, next to none for copies that
  change a layout, and leaves out the arithmetic of the vector unit;
* MB per image in main memory: operands and results of instructions outside fusions,
  with layout padding, except those in the chip's fast memory;
* temporary memory, all memory, and seconds of compiling.

On a TPU a step has 128, 256 and 512 images (hence slices of 128, of 32 in fine-tuning).
MAE-Base follows with rematerialisation, then growing batches of MAE-Tiny, -Small and
-Base, in slices and whole. Below the table stands the largest batch that fits where
another does not.

On a GPU a step has as many images as accelerator.py times; `whole` computes them at
once, `formula` also with attention by the formula. XLA cannot time its kernels without
a card, so cuBLAS computes the products.

The aims and the values reached stand below the table. A row takes one to ten minutes of
a core, in its own process; rows that `--out` has already are not compiled again, so a
stopped run can continue.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

OUT = flags.DEFINE_string("out", "compiled_step", "Folder of a JSON file for each row.")
TARGET = flags.DEFINE_enum("target", "v5e", ["v5e", "h100"], "Chip to compile for.")
ONLY = flags.DEFINE_list(
    "only", [], "Rows to compile, as mae-128-ours; all by default."
)
FIELDS = flags.DEFINE_list("set", [], "Changes of our config, as a.b=value.")
HLO = flags.DEFINE_bool("hlo", False, "Keep the text of each program beside its row.")
ROW = flags.DEFINE_string("row", None, "Internal: compile this row in this process.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Job -> (recipe, its variant, flags).
JOBS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "mae": ("mae_tiny", None, {}),
    "distill": ("mae_tiny_distill", None, {"objective.teacher.variant": "base"}),
    "finetune": ("finetune", "scratch", {}),
    "small": ("mae_small", None, {}),
    "base": ("mae_base", None, {}),
}
# Side -> changes of the recipe's config.
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "whole": {"microbatch": "off"},
    "formula": {"microbatch": "off", "attention": "plain"},
    "remat": {"remat": True},
}
# Target -> its rows, the most telling first.
_TPU_ROWS = [
    *(f"mae-{n}-{side}" for n in (128, 512) for side in ("ours", "plain")),
    "distill-512-ours",
    "distill-128-ours",
    *(f"finetune-{n}-{side}" for n in (128, 512) for side in ("ours", "plain")),
    *(f"mae-256-{side}" for side in ("ours", "plain")),
    *(f"distill-{n}-plain" for n in (128, 512)),
    *(f"{job}-256-{s}" for job in ("distill", "finetune") for s in ("ours", "plain")),
    *(f"base-128-{side}" for side in ("ours", "remat")),
    *(f"mae-{n}-whole" for n in (512, 1024, 2048, 4096)),
    *(f"small-{n}-whole" for n in (512, 1024, 2048)),
    *(f"base-{n}-whole" for n in (256, 512)),
    *(f"mae-{n}-ours" for n in (32768, 65536)),
    *(f"small-{n}-ours" for n in (16384, 32768)),
    *(f"base-{n}-ours" for n in (8192, 16384)),
]
_GPU_ROWS = [
    *(f"mae-1024-{side}" for side in ("ours", "formula", "plain")),
    *(f"finetune-512-{side}" for side in ("ours", "formula", "plain")),
    *(f"distill-1024-{side}" for side in ("ours", "formula", "plain")),
    *(f"mae-{n}-ours" for n in (256, 4096)),
    *(f"{row}-whole" for row in ("mae-4096", "finetune-512")),
]
ROWS = {"v5e": _TPU_ROWS, "h100": _GPU_ROWS}
COLUMNS = (
    "step",
    "images",
    "side",
    "slices",
    "kcycles an image",
    "MB an image",
    "temporary MiB",
    "GiB in all",
    "compile s",
)


def compile_ours(job: str, images: int, side: str, target: Any) -> tuple[Any, int]:
    """Compiles the recipe's step; returns the program and its number of slices.

    Raises:
      MemoryError: it does not fit.
    """
    from litevit_jax import recipes
    from litevit_jax.plan import program

    recipe, variant, fields = JOBS[job]
    config = recipes.get(recipe, variant)
    config = config.copy_and_resolve_references().unlock()
    changes = dict(field.split("=", 1) for field in FIELDS.value)
    fields = {**fields, **OURS[side], **changes, "batch_size": images}
    config.update_from_flattened_dict(fields)
    planned = program.plan(config, target)
    return program.compile_step(planned)[0], planned.design.slices


def compile_plain(job: str, images: int, target: Any) -> tuple[Any, int]:
    """Compiles the plain step; returns the program and 1, its number of slices."""
    import jax

    from benchmarks import plain_step
    from litevit_jax import sharding
    from litevit_jax.plan import program, topology

    mesh = sharding.make_mesh(devices=topology.devices(target))
    shapes = plain_step.shapes(job, images, sharding.replicated(mesh))
    step = jax.jit(functools.partial(plain_step.step, job), donate_argnums=0)
    options = topology.compiler_options(target)
    with program.without_cache():
        return step.lower(*shapes).compile(options), 1


def measure(name: str) -> dict[str, Any]:
    """Compiles the row called `name` in this process and measures it."""
    from litevit_jax.plan import hlo, topology

    job, number, side = name.split("-")
    images, target = int(number), topology.find(f"{TARGET.value}-1")
    topology.prepare(target)
    start = time.monotonic()
    row: dict[str, Any] = {"step": job, "images": images, "side": side}
    try:
        if side == "plain":
            compiled, slices = compile_plain(job, images, target)
        else:
            compiled, slices = compile_ours(job, images, side, target)
    except MemoryError as error:
        return row | {"too_large": str(error).partition("\n")[0]}
    text = compiled.as_text()
    if HLO.value:
        _path(name).with_suffix(".hlo.txt").write_text(text)
    module = hlo.Module(text, trips=slices)
    memory = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes
    whole += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return row | {
        "slices": slices,
        "kcycles": module.cycles() / images / 1e3,
        "hbm_mb": module.memory_traffic() / images / 1e6,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "memory_gib": whole / 2**30,
        "seconds": time.monotonic() - start,
    }


def _path(name: str) -> pathlib.Path:
    """The file of row `name`."""
    return pathlib.Path(OUT.value) / TARGET.value / f"{name}.json"


def find(name: str) -> dict[str, Any] | None:
    """The row called `name`, from its file or else compiled by another process."""
    path = _path(name)
    if not path.exists():
        if ONLY.value and name not in ONLY.value:
            return None
        print(f"compiling {name}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, f"--row={name}", f"--out={OUT.value}"]
        command += [f"--target={TARGET.value}", f"--hlo={HLO.value}"]
        command += [f"--set={','.join(FIELDS.value)}"] if FIELDS.value else []
        done = subprocess.run(command, cwd=ROOT, env=_environment(), check=False)
        if done.returncode:
            print(f"{name} could not be compiled; see above", file=sys.stderr)
            return None
    return json.loads(path.read_text())


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


@dataclasses.dataclass(frozen=True)
class Aim:
    """A bound on the ratio of two rows' figures, or on one row's figure."""

    what: str
    figure: str
    row: str
    over: str | None
    bound: float
    least: bool

    def text(self, rows: dict[str, dict[str, Any]]) -> str:
        """The bound, and the value that was reached."""
        wanted = f"{self.what}: {'at least' if self.least else 'at most'} {self.bound}"
        if self.row not in rows or (self.over and self.over not in rows):
            return f"{wanted}; not compiled"
        value = rows[self.row][self.figure]
        value /= rows[self.over][self.figure] if self.over else 1
        reached = value >= self.bound if self.least else value <= self.bound
        return f"{wanted}; {value:.3g}, {'reached' if reached else 'NOT reached'}"


def _faster(images: int, bound: float) -> Aim:
    what = f"MAE-Tiny, cycles of plain over ours at {images} images"
    plain, own = f"mae-{images}-plain", f"mae-{images}-ours"
    return Aim(what, "kcycles", plain, own, bound, True)


_GPU_AIMS = (
    Aim("MAE-Tiny, MB an image at 1,024", "hbm_mb", "mae-1024-ours", None, 45, False),
    Aim(
        "fine-tuning, MB of the formula over ours at 512 images",
        "hbm_mb",
        "finetune-512-formula",
        "finetune-512-ours",
        2.0,
        True,
    ),
)
_TPU_AIMS = (
    _faster(512, 1.8),
    _faster(128, 1.2),
    Aim("MAE-Tiny, MB an image at 128", "hbm_mb", "mae-128-ours", None, 34, False),
    Aim("MAE-Tiny, MB an image at 512", "hbm_mb", "mae-512-ours", None, 34, False),
    *(
        Aim(
            f"D-MAE over MAE, cycles at {n} images",
            "kcycles",
            f"distill-{n}-ours",
            f"mae-{n}-ours",
            2.3,
            False,
        )
        for n in (128, 512)
    ),
)
AIMS = {"v5e": _TPU_AIMS, "h100": _GPU_AIMS}


def fitting(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The largest batch that fits and the smallest that does not, for each step."""
    lines = []
    for job, side in {(row["step"], row["side"]): None for row in rows.values()}:
        tried = [r for r in rows.values() if (r["step"], r["side"]) == (job, side)]
        large = [r["images"] for r in tried if "too_large" in r]
        fits = max((r["images"] for r in tried if "too_large" not in r), default=0)
        if large:
            lines.append(f"{job}, {side}: {fits} images fit, {min(large)} do not")
    return lines


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The rows in Markdown."""
    rows = {name: row for name, row in rows.items() if "too_large" not in row}
    timed = any(row["kcycles"] for row in rows.values())  # on TPUs alone
    columns = [name for name in COLUMNS if timed or "cycles" not in name]
    lines = [columns, ["---"] * len(columns)]
    for row in sorted(rows.values(), key=lambda r: (r["step"], r["images"])):
        figures = (
            *([f"{row['kcycles']:.0f}"] if timed else []),
            f"{row['hbm_mb']:.1f}",
            f"{row['temporary_mib']:.0f}",
            f"{row['memory_gib']:.2f}",
            f"{row['seconds']:.0f}",
        )
        about = (row["step"], str(row["images"]), row["side"], str(row["slices"]))
        lines.append([*about, *figures])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main(argv: list[str]) -> None:
    """Prints the table and the aims."""
    del argv
    if ROW.value:
        os.environ["JAX_PLATFORMS"] = "cpu"
        path = _path(ROW.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        measured = measure(ROW.value)
        path.with_suffix(".part").write_text(json.dumps(measured, indent=1) + "\n")
        path.with_suffix(".part").rename(path)
        return
    known = ROWS[TARGET.value]
    unknown = set(ONLY.value) - set(known)
    if unknown:
        raise app.UsageError(f"--only={','.join(sorted(unknown))}; known: {known}")
    rows = {name: row for name in known if (row := find(name))}
    aims = [aim.text(rows) for aim in AIMS[TARGET.value]]
    print("\n".join([*table(rows), "", *aims, "", *fitting(rows)]))


if __name__ == "__main__":
    app.run(main)
