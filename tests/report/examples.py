"""Directories of runs as training leaves them, and a reader of pages."""

import html.parser

import numpy as np
from PIL import Image

from litevit_jax import paths
from litevit_jax.train import eval_runner
from litevit_jax.train import workdir as workdirs
from tests import jobs


def write_run(directory, *, logged=40, total=40, name="mae_tiny", arg=None, **config):
    """A run's directory with what a run of `name:arg` writes, and no parameters."""
    saved = jobs.config(name, arg, **{"data__cache": "auto", **config}).to_dict()
    for key, value in saved["fallback"].items():  # as a run settles it
        if key == "encoder" or value is None:
            continue
        block = saved["data"] if key in saved["data"] else saved["augment"]["normalize"]
        block[key] = value
    saved["derived"] = {"total_steps": total, "num_classes": 2}
    workdirs.write_json(directory / "config.json", workdirs.plain(saved))
    rng = np.random.default_rng(0)
    for step in range(1, logged + 1):
        row = {"step": step, "epoch": step / 10, "loss": float(rng.normal() + 2)}
        row |= {"lr": 1e-3 * step / total, "grad_norm": float(rng.random())}
        row |= {"attn_entropy/head_01": 1.5, "attn_entropy/head_02": float(step)}
        row |= {"images_per_s": 312.7 + step, "data_wait": 1.0, "step_s": 0.2}
        row |= {"time": 1.0e9 + step}
        paths.append_line(directory / "metrics.jsonl", row)
        if step % 10 == 0:
            top1 = 100 / 3 + (step if step < 40 else 5)  # the last is not the best
            numbers = {"top1": top1, "top5": 90.5, "n": 359}
            stamp = {"step": step, "params": "abc", "time": 1.0e9 + step}
            about = {"name": "knn", "metric": "top1"}
            eval_runner.record_result(directory, "knn", numbers | stamp, "top1", about)
            logged_row = {f"knn/{k}": v for k, v in numbers.items()}
            paths.append_line(directory / "metrics.jsonl", {"step": step, **logged_row})
    for step in (10, 40):
        picture = directory / "pictures" / f"reconstruction_{step:07d}.png"
        picture.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
    for commit in ("f00", "f01", "f02"):
        start = {"time": "2026-01-01", "commit": commit, "versions": {"jax": "1"}}
        start |= {"devices": ["cpu:0"], "command": ["main.py"]}
        paths.append_line(directory / "environment.jsonl", start)
    return directory


def write_analysis(run, name, *, value=0.5, compat="exact"):
    """What an analysis of two blocks leaves in the directory of a run."""
    directory = run / "analysis"
    (directory / "figures").mkdir(parents=True)
    file = f"figures/attention-{name}-layer2-cls.png"
    Image.new("RGB", (120, 120), (int(250 * value), 0, 0)).save(directory / file)
    about = {"path": str(run), "run": str(run), "step": 40, "width": 8, "depth": 2}
    about |= {"num_heads": 2, "patch_size": 2, "image_size": [8, 8], "images": 16}
    numbers = {"effective_rank": [value] * 3, "token_similarity": [value] * 3}
    pair = {"rows": name, "columns": name, "values": [[1.0, value], [value, 1.0]]}
    analysis = {
        "images": 16,
        "models": {name: about | {"last_norm": "norm"}},
        "notes": ["CKA: 4 of 16 images did not fill a minibatch of 12."],
        "attention": {name: {k: [[value] * 2] * 2 for k in ("entropy", "distance")}},
        "attention_compat": compat,
        "features_of": {"place": "norm1", "pool": "avg"},
        "features": {name: numbers | {"spectrum": [[1.0, value]] * 3}},
        "cka": {"minibatches": 1, "size": 12, "pairs": [pair]},
        "maps": [{"model": name, "layer": 2, "query": "cls", "file": file}],
        "picture_notes": [f"{name}: no reconstructions, as it has no decoder."],
    }
    workdirs.write_json(directory / "analysis.json", analysis)


class Page(html.parser.HTMLParser):
    """Every address and every number that a page holds; and that its tags close."""

    def __init__(self, markup):
        super().__init__()
        self.addresses, self.numbers, self.ids, self._open = [], [], [], []
        self.rows = []
        self.feed(markup)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        names = ("src", "href", "srcset")
        self.addresses += [values[k] for k in names if k in values]
        self.ids += [values[k] for k in ("id",) if k in values]
        if tag in ("tr", "td"):
            target = self.rows if tag == "tr" else self.rows[-1]
            target.append([] if tag == "tr" else [values["data-head"], ""])
        if tag == "data":
            self.numbers.append([values["value"], values["data-source"], ""])
        assert tag not in ("script", "iframe", "object", "embed", "base")
        if tag not in ("meta", "link", "img", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "data":
            self.numbers[-1][2] += data
        if "td" in self._open:
            self.rows[-1][-1][1] += data
