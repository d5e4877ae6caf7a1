"""Weak scaling by compilation: the same work for each chip, on more and more chips.

    pip install -e '.[plan]'
    python benchmarks/weak_scaling.py --out=weak_scaling

Compiles, for slices of TPU v5e, the steps of MAE-Tiny, of D-MAE-Tiny under a ViT-L
teacher and of MoCo v3 (whose negatives are all images of the global batch), each at a
constant batch per chip, and prints the table of docs/scaling.md. Nothing is run: memory
and traffic are the compiler's, times are bounds from them and the chip's peak rates.
Each step is compiled in its own process, a few minutes of one core and up to 4 GB;
plans that `--out` has already are not compiled again.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import app, flags

OUT = flags.DEFINE_string("out", "weak_scaling", "Folder of a JSON file for each plan.")
CHIPS = flags.DEFINE_multi_integer("chips", [8, 32, 128, 256], "Sizes of the slice.")
KIND = flags.DEFINE_string("kind", "v5e", "Generation of the TPU.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Title -> (recipe, images a chip, flags).
METHODS = {
    "MAE-Tiny": ("mae_tiny", 128, []),
    "D-MAE-Tiny, ViT-L teacher": (
        "mae_tiny_distill",
        128,
        [
            "--config.objective.teacher.variant=large",
            "--config.objective.pairs=((12, 24),)",  # last with last
        ],
    ),
    "MoCo v3 Tiny": ("mocov3_tiny", 64, []),
}
COLUMNS = (
    "method",
    "chips",
    "batch",
    "GiB a chip",
    "collectives",
    "MB reduced",
    "MB gathered",
    "links ms",
    "step ms",
    "images/s",
)


def plan(recipe: str, chips: int, images: int, more: list[str]) -> dict[str, Any]:
    """The plan of one step, from its file or else compiled."""
    path = pathlib.Path(OUT.value) / f"{recipe}-{KIND.value}-{chips}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "main.py",
            f"--config=configs/{recipe}.py",
            f"--config.batch_size={images * chips}",
            *more,
            f"--plan={KIND.value}-{chips}",
            f"--plan_out={path.absolute().with_suffix('.part')}",
        ]
        print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())


def row(title: str, numbers: dict[str, Any]) -> list[str]:
    """One line of the table."""
    moved, guess = numbers["collectives"], numbers["estimate"]
    low, high = (1e3 * seconds for seconds in guess["step_seconds"])
    slow, fast = (rate / 1e3 for rate in guess["images_per_second"])
    megabytes = {kind: t["bytes"] / 1e6 for kind, t in moved.items()}
    return [
        title,
        str(numbers["chips"]),
        f"{numbers['batch_size']:,}",
        f"{numbers['memory']['needed'] / 2**30:.2f}",
        str(sum(t["count"] for t in moved.values())),
        f"{megabytes.get('all-reduce', 0):.1f}",
        f"{sum(megabytes.values()) - megabytes.get('all-reduce', 0):.1f}",
        f"{1e3 * guess['links_seconds']:.2f}",
        f"{low:.1f}..{high:.1f}",
        f"{slow:,.0f}k..{fast:,.0f}k",
    ]


def main(argv: list[str]) -> None:
    """Prints the table in Markdown."""
    del argv
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for title, (recipe, images, more) in METHODS.items():
        for chips in CHIPS.value:
            rows.append(row(title, plan(recipe, chips, images, more)))
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


if __name__ == "__main__":
    app.run(main)
