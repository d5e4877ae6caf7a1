"""Tables of what runs reached in their evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litevit_jax.report import page, published, run_record


def tables(runs: Sequence[run_record.Run]) -> list[Any]:
    """Returns the tables of a report: evaluations, classes, published numbers."""
    rows = []
    for run in runs:
        for title, result in run.results.items():
            rows += _result_rows(run, title, result)
    parts: list[Any] = []
    if rows:
        head = ["run", "evaluation", "number", "last", "at update", "best", "at update"]
        if len(runs) == 1:
            head, rows = head[1:], [row[1:] for row in rows]
        parts.append(page.Table(head, rows))
    parts += [part for run in runs for part in _classes(run, several=len(runs) > 1)]
    known = [(run, row) for run in runs if (row := published.of(run)) is not None]
    if known:
        head = ["run", "expected", "what", "source", "reached", "to be compared?"]
        parts.append(page.Heading("Expected and reached"))
        parts.append(page.Table(head, [_published(run, row) for run, row in known]))
    return parts


def _classes(run: run_record.Run, *, several: bool) -> list[page.Folded]:
    """Returns the tables of classes that evaluations recorded, folded up."""
    parts = []
    for title, result in run.results.items():
        for key in ("table", "classes"):
            table = result["last"].get(key) or [{}]
            if "class" not in table[0]:
                continue
            where = f"result.json {run.name}/{title} last.{key}"
            rows = [
                [
                    page.Number(v, f"{where}.{i}.{k}")
                    if v is None or isinstance(v, int | float)
                    else v
                    for k, v in row.items()
                ]
                for i, row in enumerate(table)
            ]
            what = "most confused pairs" if "percent" in table[0] else "by class"
            heading = f"{run.name}: " * several + f"{title}, {what}"
            parts.append(page.Folded(heading, page.Table([*table[0]], rows)))
    return parts


def _result_rows(run: run_record.Run, title: str, result: dict[str, Any]) -> list[list]:
    last, best, metric = result["last"], result.get("best"), result.get("metric")
    names = [k for k in last if k not in run_record.STAMPS and k != metric]
    names = [k for k in (metric, *names) if isinstance(last.get(k), int | float)]
    rows = []
    for name in names:
        where = f"result.json {run.name}/{title}"
        row = [run.name, title, name, page.Number(last[name], f"{where} last.{name}")]
        row.append(page.Number(last.get("step"), f"{where} last.step"))
        if name == metric and best is not None:
            row += [
                page.Number(best[name], f"{where} best.{name}"),
                page.Number(best.get("step"), f"{where} best.step"),
            ]
        else:
            row += ["", ""]
        rows.append(row)
    return rows


def _published(run: run_record.Run, row: dict[str, Any]) -> list[Any]:
    reached: Any = "not measured by this run"
    if row["reached"] is not None:
        source = f"result.json {run.name}/{row['result']} last.top1"
        reached = page.Number(row["reached"], source)
    verdict = "yes" if row["comparable"] else f"no: {row['why']}"
    value = page.Number(row["expected"], f"published.py {row['source']}")
    return [run.name, value, row["what"], row["source"], reached, verdict]
