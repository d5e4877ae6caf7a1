"""Measures an accelerator within minutes, the most important figures first.

    python benchmarks/accelerator.py --out=DIR
    python benchmarks/accelerator.py --out=DIR --minutes=8 --parts=identity,steps
    python benchmarks/accelerator.py --out=DIR --torch_python=PYTHON --data=CIFAR_DIR

Runs on whatever JAX finds, in these parts:

    identity   the card, driver and versions; bandwidth of a copy, rate of a product
    numerics   golden losses, float32 against the CPU, bfloat16, attention, exact resume
    steps      the recipes' own training steps, from images as bytes
    peers      the same steps in plain PyTorch, eager and compiled, in turn with ours
    attention  every way to compute attention, at the sizes of ViT-Tiny and -Base
    inputs     images/s of the host by threads, and the waiting of a real run
    profile    the operations of five steps by time
    learning   a run of minutes with a probe, on --data or on the embedded digits

Each part runs in its own process and is written to DIR/PART.json row by row, as soon as
a row is measured. The command stops at --minutes; start it again for the missing rows.
DIR/results.md and DIR/results.json have all tables.

Rates are medians of several repetitions, with the smallest and the largest; a
repetition ends when the device is done. Compiling is timed apart. On a CPU (or with
--small) models and batches are tiny: that checks the parts and measures nothing.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess
import sys
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.parts import common
from litevit_jax import cpu

OUT = flags.DEFINE_string("out", "accelerator", "Folder of the results.")
MINUTES = flags.DEFINE_float("minutes", 8.0, "Time of the whole command.")
PARTS = flags.DEFINE_list("parts", list(common.PARTS), "Parts to run, in this order.")
TORCH = flags.DEFINE_string("torch_python", sys.executable, "Python that has torch.")
DATA = flags.DEFINE_string("data", None, "Image folder or .npz that learning reads.")
SMALL = flags.DEFINE_enum(
    "small", "auto", ["auto", "yes", "no"], "Tiny models; auto: on a CPU."
)
PART = flags.DEFINE_string("part", None, "Internal: measure this part here.")
UNTIL = flags.DEFINE_float("until", 0.0, "Internal: when to end, seconds since 1970.")

_GRACE = 0.04  # of the time, for a part to end by itself before it is killed


def run_part(name: str, until: float) -> None:
    """Measures part `name` in its own process, which ends when its time is over."""
    command = [sys.executable, __file__, f"--part={name}", f"--out={OUT.value}"]
    command += [f"--until={until}", f"--small={SMALL.value}"]
    command += [f"--torch_python={TORCH.value}"]
    command += [f"--data={DATA.value}"] if DATA.value else []
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    grace = _GRACE * MINUTES.value * 60
    try:
        code = process.wait(timeout=max(until + grace - time.time(), 0.1))
        if code:
            print(f"{name}: ended with exit code {code}; what it had measured is kept")
    except subprocess.TimeoutExpired:
        print(f"{name}: its time is over; what it had measured is kept")
    finally:
        common.end_group(process)


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    unknown = [name for name in PARTS.value if name not in common.PARTS]
    if unknown:
        known = ", ".join(common.PARTS)
        raise app.UsageError(f"--parts={','.join(unknown)}: choose from {known}")
    if MINUTES.value <= 0:
        raise app.UsageError(f"--minutes={MINUTES.value}: expected more than 0")
    out = pathlib.Path(OUT.value).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if PART.value:
        cpu.choose()
        part = common.Part(PART.value, out, UNTIL.value, SMALL.value)
        part.torch_python, part.data = TORCH.value, DATA.value
        importlib.import_module(f"benchmarks.parts.{PART.value}").run(part)
        return part.finish()
    begin = time.time()
    end = begin + 60 * MINUTES.value
    shares = {name: common.PARTS[name] for name in PARTS.value}
    for name in PARTS.value:
        if common.load(out, name)["complete"]:
            print(f"{name}: measured already, in {out / name}.json")
            continue
        left = end - time.time()
        rest = sum(list(shares.values())[PARTS.value.index(name) :])
        if left < 1:
            print(f"{name}: no time left; start the command again")
            continue
        print(f"{name}: at most {left * shares[name] / rest:.0f} s", flush=True)
        run_part(name, time.time() + left * shares[name] / rest)
        common.write_tables(out)
    print(common.write_tables(out))
    print(f"{time.time() - begin:.0f} s; tables are in {out / 'results.md'}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    app.run(main)
