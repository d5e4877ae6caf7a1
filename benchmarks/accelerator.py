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
    small      sets that live on the device: what a run reaches of the bare step
    profile    the operations of five steps by time
    learning   a run of minutes with a probe, on --data or on the embedded digits

Each part runs in its own process and is written to DIR/PART.json row by row, as soon as
a row is measured. The command stops at --minutes; start it again for the missing rows.
A row that failed has an `error` and is not tried again, unless you remove its file.
DIR/results.md and DIR/results.json have all tables.

Rates are medians of several repetitions, with the smallest and the largest; a
repetition ends when the device is done. Compiling is timed apart. On a CPU (or with
--small) models and batches are tiny: that checks the parts and measures nothing.
"""

from __future__ import annotations

import importlib
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.parts import common
from litevit_jax import cpu, exits

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
DEVICE = flags.DEFINE_string("device", "", "Internal: what a part runs on.")
PARENT = flags.DEFINE_integer("parent", 0, "Internal: a part ends with this process.")

_GRACE = 0.04  # of the time, for a part to end by itself before it is killed
_LEAST_S = 1.0  # to begin a part
# Prints what JAX runs on, and ends: JAX would keep the device from a part's own runs.
_LOOK = """
from litevit_jax import cpu
try:
    cpu.choose()
    device = cpu.devices()[0]
except (RuntimeError, ValueError) as error:
    raise SystemExit(f"error: {error}")
print(device.platform, device.device_kind, sep=": ")
"""


def refuse(text: str) -> NoReturn:
    """Prints the mistake and ends the program, before anything is measured."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(exits.USAGE)


def look(seconds: float) -> str:
    """Returns the device that JAX runs on, as 'platform: kind'."""
    command = [sys.executable, "-c", _LOOK]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        refuse(f"JAX did not start within {seconds:.0f} s: is the device in use?")
    if done.returncode:
        sys.exit(exits.USAGE)  # it has said why
    return done.stdout.splitlines()[-1]


def check(out: pathlib.Path) -> None:
    """Refuses what the flags cannot mean."""
    unknown = [name for name in PARTS.value if name not in common.PARTS]
    if unknown or not PARTS.value:
        known = ", ".join(common.PARTS)
        refuse(f"--parts={','.join(unknown)}: choose from {known}")
    if not 0 < MINUTES.value < math.inf:
        refuse(f"--minutes={MINUTES.value}: expected more than 0")
    if DATA.value and not pathlib.Path(DATA.value).exists():
        refuse(f"--data={DATA.value} does not exist; give a folder or an .npz")
    if "peers" in PARTS.value and not shutil.which(TORCH.value):
        refuse(f"--torch_python={TORCH.value} is no program; give a Python with torch")
    if out.exists() and not out.is_dir():
        refuse(f"--out={OUT.value} is a file; give a folder")


def run_part(name: str, until: float, out: pathlib.Path, device: str) -> int:
    """Measures part `name` in its own process, which ends when its time is over.

    Returns its exit code; 0 if it was killed because its time was over.
    """
    small = "yes" if common.SMALL_FORM in device else "no"
    # It runs in another folder than the command.
    program = shutil.which(TORCH.value) or TORCH.value
    command = [sys.executable, __file__, f"--part={name}", f"--out={out}"]
    command += [f"--until={until}", f"--small={small}", f"--device={device}"]
    command += [f"--parent={os.getpid()}"]
    command += [f"--torch_python={os.path.abspath(program)}"]
    command += [f"--data={os.path.abspath(DATA.value)}"] if DATA.value else []
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    grace = _GRACE * MINUTES.value * 60
    try:
        return process.wait(timeout=max(until + grace - time.time(), 0.1))
    except subprocess.TimeoutExpired:
        print(f"{name}: its time is over; what it had measured is kept")
        return 0
    finally:
        common.end_group(process)


def finish_part(name: str, until: float, out: pathlib.Path, device: str) -> None:
    """Measures part `name`, in a new process after each that broke at a row."""
    while code := run_part(name, until, out, device):
        if code != common.AGAIN:
            print(f"{name}: ended with exit code {code}; what it had measured is kept")
            if not common.blame(out, name, code):
                return
        if until - time.time() < _LEAST_S:
            return


def follow() -> None:
    """Ends this process, and what it has started, when its parent is gone."""
    while PARENT.value and os.getppid() == PARENT.value:
        time.sleep(0.5)
    if PARENT.value:
        os.killpg(0, signal.SIGKILL)


def measure_here(name: str, out: pathlib.Path) -> None:
    """Measures part `name` in this process."""
    threading.Thread(target=follow, daemon=True).start()
    cpu.choose()
    part = common.Part(name, out, UNTIL.value, SMALL.value)
    part.about(DEVICE.value)
    part.torch_python, part.data = TORCH.value, DATA.value
    importlib.import_module(f"benchmarks.parts.{name}").run(part)
    part.finish()


def prepare(out: pathlib.Path, seconds: float) -> str:
    """Returns the device, and checks that `out` has no figures of another one."""
    device = common.SMALL_FORM
    if SMALL.value != "yes":
        device = look(seconds)
        if SMALL.value == "auto" and device.startswith("cpu"):
            device = common.SMALL_FORM
    for name in common.PARTS:
        before = common.load(out, name).get("device", device)
        if before != device:
            refuse(
                f"--out={OUT.value} has figures of another device ({before}), and this "
                f"is {device}; give another folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    # PyTorch may have been installed since.
    rows = common.load(out, "peers")["rows"].values() if "peers" in PARTS.value else ()
    alone = any(common.WITHOUT_TORCH in row for row in rows)
    if alone and not common.why_no_torch(TORCH.value):
        common.reopen(out, "peers", common.WITHOUT_TORCH)
    return device


def main(argv: list[str]) -> None:
    if argv[1:]:
        refuse(f"unexpected argument {argv[1]!r}")
    out = pathlib.Path(OUT.value).resolve()
    if PART.value:
        return measure_here(PART.value, out)
    check(out)
    begin = time.time()
    end = begin + 60 * MINUTES.value
    device = prepare(out, max(end - time.time(), 1.0))
    if device == common.SMALL_FORM:
        print("small form: this checks the parts and measures nothing")
    names = dict.fromkeys(PARTS.value)
    done = [name for name in names if common.load(out, name)["complete"]]
    shares = {name: common.PARTS[name] for name in names if name not in done}
    for name in names:
        if name in done:
            print(f"{name}: measured already, in {out / name}.json")
            continue
        left, rest = end - time.time(), sum(shares.values())
        share = left * shares.pop(name) / rest
        if left < _LEAST_S:
            print(f"{name}: no time left; start the command again")
            continue
        print(f"{name}: at most {share:.0f} s", flush=True)
        finish_part(name, time.time() + share, out, device)
        common.write_tables(out)
    print(common.write_tables(out))
    print(f"{time.time() - begin:.0f} s; tables are in {out / 'results.md'}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    app.run(main)
