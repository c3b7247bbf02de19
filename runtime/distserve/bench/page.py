"""The report as one HTML page that needs nothing else: figures inline, tables, warnings."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from distserve.bench.alike import differences
from distserve.bench.analysis import NOT_ITS_OWN, classes
from distserve.bench.figures import Picture
from distserve.bench.slos import NONE, Slo
from distserve.bench.tables import Question, Row, columns, plain

NEAR = 0.1
"""Up to this part apart two rates are taken as one: a recorded trace has no round ones."""
_OF_COMPLETED = (
    "Attainment is of all asked requests; percentiles, means and latencies are of the completed "
    "ones, as many as the column says."
)
_NOTES = {
    "runs": _OF_COMPLETED,
    "classes": _OF_COMPLETED,
    "normalised": "Latencies are of the completed requests; completed share is the least of them "
    "in the runs that the rate follows from, the first beyond the limit too.",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: .2rem .5rem; text-align: right; white-space: nowrap; }
th { background: #f2f2f2; } td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
.warning { border-left: 4px solid #D55E00; padding-left: .7rem; }
"""


def page(question: Question, tables: dict[str, Sequence[Row]], pictures: Sequence[Picture]) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>distserve bench</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(', '.join(question.systems))}</h1>",
        f"<p>SLO ({_text(question.slo_source)}): {_objectives(question.slo)}.</p>",
    ]
    parts += [f"<p class='warning'>{_text(line)}</p>" for line in warnings(question)]
    for picture in pictures:
        parts.append(
            f"<figure>{_inline(picture)}<figcaption>{_text(picture.caption)}</figcaption></figure>"
        )
    for title, rows in tables.items():
        note = f"<p>{_text(_NOTES[title])}</p>" if title in _NOTES else ""
        parts.append(f"<h2>{_text(title)}</h2>{note}{_table(rows)}")
    return "\n".join([*parts, "</body></html>\n"])


def _objectives(slo: Slo) -> str:
    limits = {"TTFT": slo.ttft, "TPOT": slo.tpot}
    told = [f"{name} ≤ {limit * 1000:.4g} ms" for name, limit in limits.items() if limit != NONE]
    return " and ".join(told) or "each request's own"


def warnings(question: Question) -> list[str]:
    """What a reader must know before believing the figures."""
    lines = [
        f"{name}: interrupted and left out; repeat its command to measure it"
        for name in question.interrupted
    ]
    lines += [
        f"{name}: equal gaps, so no point of a Poisson curve, and left out; drop -uniform from the "
        "name, with a prefix of its own, to have it drawn"
        for name in question.equal_gaps
    ]
    own = sum(s.own != NOT_ITS_OWN for run in question.runs for s in run.samples)
    if own:
        total = sum(len(run.samples) for run in question.runs)
        lines.append(f"{own} of {total} completed requests were judged by objectives of their own")
    rate = question.rate_of_sweep
    for system, run in question.swept.items():
        if abs(run.rate_per_gpu - rate) > NEAR * rate:
            lines.append(
                f"{system}: the objectives are scaled at {run.rate_per_gpu:.3g}/s/GPU, the "
                f"measured rate next to {rate:.3g}; give --scale-rate, or measure there"
            )
    for run in question.runs:
        if own and not classes(run):
            lines.append(
                f"{run.system} at {run.rate:g}/s: without its .csv nobody knows which requests "
                "failed, so there are no figures by objectives"
            )
        name = f"{run.system} at {run.rate:g}/s"
        if not run.valid:
            lines.append(f"{name}: INVALID, the client fell behind its plan; measure it again")
        if missing := run.requests - len(run.samples):
            lines.append(
                f"{name}: {missing} of {run.requests} requests failed; they met no SLO and are "
                "in no percentile"
            )
        if run.cut_off:
            lines.append(
                f"{name}: {run.cut_off} records have times of fewer tokens than they say and "
                "count as failed; DistServe's client writes such of DeepSpeed-MII, where it notes "
                "a time for each read, not for each token"
            )
        if run.about.get("parameters", {}).get("no_stream"):
            lines.append(f"{name}: whole answers, so TTFT and TPOT are unknown and no SLO is met")
    made_up = {
        str(dataset)
        for run in question.runs
        if (dataset := run.about.get("parameters", {}).get("dataset", ""))
        and str(dataset).startswith("synthetic:")
    }
    if differing := differences(question.runs):
        lines.append(f"the runs differ in {differing}: they answer different questions")
    lines += [f"{dataset}: made-up lengths, not the data set itself" for dataset in sorted(made_up)]
    return lines


def _inline(picture: Picture) -> str:
    """The SVG element alone; ids of several figures in one page must differ."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    return svg


def _table(rows: Sequence[Row]) -> str:
    names = columns(rows)
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _text(f"{value:.4g}" if isinstance(value, float) else str(value))


def _text(words: str) -> str:
    return html.escape(words)
