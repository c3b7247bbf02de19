"""What a fit says of itself: coefficients and errors as a table or JSON, and a picture.

Called by `distserve profile fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from distserve.planner.fitting import Errors, Fit, Quality
from distserve.planner.records import Record
from distserve.planner.result import quantile
from distserve.planner.serving import Serving
from distserve.profile.errors import ProfileError

Fits = Mapping[tuple[str, int], Fit]


def document(fits: Fits) -> dict[str, Any]:
    """For `--format json`: errors are shares of the measured time."""
    return {
        f"{model} TP {tp}": {
            "origin": asdict(fit.origin),
            "prefill": list(fit.times.prefill),
            "decode_small": list(fit.times.decode_small),
            "decode_large": list(fit.times.decode_large),
            "large_batch": fit.times.large_batch,
            "decode_larger": {
                str(border): list(larger) for border, larger in fit.times.decode_larger
            },
            "errors": {"prefill": asdict(fit.prefill), "decode": asdict(fit.decode)},
            "serving": fit.serving.as_entry() if fit.serving else None,
        }
        for (model, tp), fit in fits.items()
    }


def table(fits: Fits) -> Iterator[str]:
    for (model, tp), fit in fits.items():
        times, origin = fit.times, fit.origin
        where = ", ".join(w for w in (origin.dtype, origin.device, origin.engine_version) if w)
        yield f"{model} TP {tp}" + (f" ({where})" if where else "")
        yield f"  prefill {_formula(times.prefill, 'sum(l)', 'sum(l^2)')}"
        yield f"  decode  {_formula(times.decode_small, 'sum(context)', 'n')}"
        for border, decode in ((times.large_batch, times.decode_large), *times.decode_larger):
            if decode != times.decode_small:
                formula = _formula(decode, "sum(context)", "n")
                yield f"          {formula} from {border} requests on"
        yield "  relative error     records    mean  median     p90   worst"
        for phase, quality in (("prefill", fit.prefill), ("decode", fit.decode)):
            yield from _errors(phase, quality)
        if fit.serving:
            yield from _serving(fit.serving)


def _serving(added: Serving) -> Iterator[str]:
    yield (
        f"  a deployment adds {added.request_ms:.2f} ms a request, {added.prompt_ms:.2f} ms a "
        f"prompt and {added.prefill_longer:+.1%} to its prefill, {added.handover_ms:.2f} ms a "
        "hand-over, "
        f"{added.decode_longer:+.1%} and {added.step_ms:.3f} ms + {added.stream_ms:.3f} ms x n a "
        f"decode step, and {1000 * added.padding_ms:.3f} ms to it for 1000 tokens of padding"
    )
    yield (
        f"  beside n others that decode {added.busy_request_ms:.2f} ms + "
        f"{added.stream_request_ms:.3f} ms x n more a request and "
        f"{added.busy_handover_ms:.2f} ms a hand-over; to "
        f"all of them {added.coming_ms:.2f} ms for each that comes, {added.joining_ms:.2f} ms for "
        f"each that joins, among 16 streams {added.among(16):.0%} of both"
    )
    yield (
        f"  while the other computes, decode takes {added.decode_slowed:.1%} and prefill "
        f"{added.prefill_slowed:.1%} longer"
    )
    for phase in fields(added.pace):
        if series := sorted(getattr(added.pace, phase.name)):
            low, high = (quantile(series, at) for at in (10, 90))
            yield (
                f"  {phase.name} steps took {low:.2f} times as long or less in a tenth of "
                f"{len(series)} seconds, and {high:.2f} times or more in another"
            )


def _formula(coefficients: tuple[float, float, float], first: str, second: str) -> str:
    a, b, c = coefficients
    return f"{a:.4g} + {b:.4g} {first} + {c:.4g} {second} ms"


def _errors(phase: str, quality: Quality) -> Iterator[str]:
    rows: list[tuple[str, Errors | None]] = [
        ("fitted to", quality.seen), ("held out", quality.held_out),
    ]  # fmt: skip
    for words, errors in rows:
        if errors is not None:
            shares = (errors.mean, errors.median, errors.p90, errors.worst)
            cells = "".join(f"{share:8.1%}" for share in shares)
            yield f"  {phase:8}{words:10} {quality.records:7}{cells}"


def draw(fits: Fits, path: Path) -> list[Path]:
    """Measured beside fitted times of each phase, as PNG and SVG. Raises ProfileError."""
    try:
        import matplotlib
    except ImportError as error:
        raise ProfileError(
            "--plot needs matplotlib, in a checkout: pip install '.[bench]'"
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(fits), 2, figsize=(9, 3.4 * len(fits)), squeeze=False, layout="constrained"
    )
    for row, ((model, tp), fit) in zip(axes, fits.items(), strict=True):
        _panel(row[0], f"{model} TP {tp}: prefill", fit, lambda r: r.prefill_ms, _prefill_of(fit))
        _panel(row[1], f"{model} TP {tp}: decode", fit, lambda r: r.decode_ms, _decode_of(fit))
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        for file in files:
            figure.savefig(file)
    except OSError as error:
        raise ProfileError(f"cannot write {file}: {error.strerror}") from error
    finally:
        pyplot.close(figure)
    return files


def _prefill_of(fit: Fit) -> Callable[[Record], float]:
    return lambda r: fit.times.prefill_ms(
        r.batch_size * r.input_tokens, r.batch_size * r.input_tokens**2
    )


def _decode_of(fit: Fit) -> Callable[[Record], float]:
    return lambda r: fit.times.decode_ms(r.batch_size, round(r.decode_context_tokens))


def _panel(
    axis: Any,
    title: str,
    fit: Fit,
    measured: Callable[[Record], float | None],
    fitted: Callable[[Record], float],
) -> None:
    """Each batch size a colour of one map that also reads in grey: size is an order."""
    from matplotlib import colormaps

    sizes = sorted({record.batch_size for record in fit.measured})
    times = [time for record in fit.measured if (time := measured(record)) is not None]
    for index, size in enumerate(sizes):
        points = [
            (time, fitted(record))
            for record in fit.measured
            if record.batch_size == size and (time := measured(record)) is not None
        ]
        if points:
            colour = colormaps["viridis"](index / max(1, len(sizes) - 1) * 0.9)
            axis.scatter(*zip(*points, strict=True), s=18, color=colour, label=str(size))
    ends = [min(times), max(times)]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.fill_between(
        ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="grey", alpha=0.2, linewidth=0
    )
    axis.set(xscale="log", yscale="log", title=title, xlabel="measured (ms)", ylabel="fitted (ms)")
    axis.legend(title="batch", fontsize="x-small", ncols=2)
