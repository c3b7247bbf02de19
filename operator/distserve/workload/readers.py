"""Reads request sets from files: csv (plain or gzipped), `.ds`, JSON and JSON lines.

| file | fields |
|---|---|
| csv | prompt_len,output_len[,arrival_ms] |
| csv | num_prefill_tokens,num_decode_tokens[,arrived_at] |
| csv | ContextTokens,GeneratedTokens[,TIMESTAMP], as Azure publishes them |
| .ds | the datasets of DistServe (`reqs`) and LoongServe (`data`): Python marshal, with texts |
| .json | a list of {prompt_len, output_len[, start_time]}, start_time in seconds |
| .jsonl | one {input_length, output_length[, timestamp]} a line, timestamp in milliseconds |

Any of them may be gzipped. Mooncake's traces are such .jsonl files; `arrived_at` is in
seconds, `TIMESTAMP` a date. Requests may have objectives of their own: columns `slo_ttft_ms` and
`slo_tpot_ms` (empty: none), in a `.ds` pairs under the key `slos`. In JSON `hash_ids` are those of
a prompt's blocks, for whoever makes prompts of them; one without shares nothing with the others.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from distserve.workload import marshalled
from distserve.workload.requests import Objectives, RequestSet, WorkloadError

# (prompt, output, arrival, factor that makes the arrival milliseconds)
_COLUMNS = (
    ("prompt_len", "output_len", "arrival_ms", 1.0),
    ("num_prefill_tokens", "num_decode_tokens", "arrived_at", 1000.0),
    ("input_length", "output_length", "timestamp", 1.0),
    ("prompt_len", "output_len", "start_time", 1000.0),
    ("ContextTokens", "GeneratedTokens", "TIMESTAMP", 1000.0),
)
_OBJECTIVES = ("slo_ttft_ms", "slo_tpot_ms")
_BLOCKS, _HIGHEST_BLOCK = "hash_ids", 2**64 - 1
MAX_UNPACKED_BYTES = 1 << 30
"""A gzipped file may be a thousand times as long once it is unpacked: more than this is refused."""
_PIECE_BYTES = 1 << 20
_WRONG = (ValueError, LookupError, TypeError, OverflowError)
"""What a row or a file of another layout raises."""


def read_requests(path: Path | str) -> RequestSet:
    """Read a request set; raises `WorkloadError` with the cure when the file does not hold one."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = _unpacked(raw, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WorkloadError(f"cannot read the requests in {path}: {reason}") from error
    if _kind(path) == ".ds":
        with _said_of(str(path)):
            return _from_ds(raw, str(path))
    with _said_of(str(path)):
        text = raw.decode()
    return parse_requests(text, str(path))


def _unpacked(raw: bytes, path: Path) -> bytes:
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
        while piece := packed.read(_PIECE_BYTES):
            found += piece
            if len(found) > MAX_UNPACKED_BYTES:
                raise WorkloadError(
                    f"{path} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB; unpack it with "
                    "gunzip if it is to be trusted, or give a part of it"
                )
    return bytes(found)


def parse_requests(text: str, origin: str) -> RequestSet:
    """The request set in a text that was read elsewhere; `origin` ends as a file of its kind would.

    csv, JSON or JSON lines. Raises `WorkloadError`.
    """
    kind = _kind(Path(origin))
    if kind == ".ds":
        raise WorkloadError(f"{origin}: a .ds file is no text; give a csv instead")
    text = text.removeprefix("\ufeff")  # the mark that Windows' editors begin a file with
    with _said_of(origin):
        if kind == ".json":
            rows = enumerate(json.loads(text))
            return _from_mappings({f"request {row}": found for row, found in rows}, origin)
        if kind == ".jsonl":
            return _from_mappings(_lines(text, origin), origin)
        return _from_csv(text, origin)


def _lines(text: str, origin: str) -> dict[str, Any]:
    """What stands in each line that is not blank, by the line's name."""
    found = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            with _told_at(f"{origin}, line {number}"):
                found[f"line {number}"] = json.loads(line)
    return found


def _kind(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return suffixes[-1] if suffixes else ".csv"


@contextmanager
def _said_of(origin: str) -> Iterator[None]:
    """Whatever a wrong layout raises, as the one error of this room."""
    try:
        yield
    except WorkloadError:
        raise
    except (*_WRONG, AttributeError, EOFError, RecursionError) as error:
        raise WorkloadError(
            f"{origin} does not hold a request set: {error}; give a csv with the columns "
            "prompt_len,output_len"
        ) from error


@contextmanager
def _told_at(place: str) -> Iterator[None]:
    """Whatever a wrong row raises, with its place."""
    try:
        yield
    except json.JSONDecodeError as error:  # says a line of its own, which is not the file's
        raise WorkloadError(
            f"{place}: no JSON: {error.msg} at column {error.colno}; correct or drop it"
        ) from error
    except KeyError as error:
        raise WorkloadError(f"{place}: lacks {error.args[0]}; correct or drop it") from error
    except _WRONG as error:
        raise WorkloadError(f"{place}: {error}; correct or drop it") from error


def _from_csv(text: str, origin: str) -> RequestSet:
    rows = _csv_rows(text, origin)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    prompt, output, arrival, factor = _columns(header, origin)
    at_prompt, at_output = header.index(prompt), header.index(output)
    at_arrival = header.index(arrival) if arrival in header else None
    own = [header.index(name) if name in header else None for name in _OBJECTIVES]
    prompts, outputs, times, objectives = [], [], [], []
    for line, row in rows:
        if not row:
            continue
        with _told_at(f"{origin}, line {line}"):
            prompts.append(int(row[at_prompt]))
            outputs.append(int(row[at_output]))
            if at_arrival is not None:
                times.append(_instant(row[at_arrival]) * factor)
            objectives.append(Objectives(*(None if at is None else _ms(row[at]) for at in own)))
    return RequestSet(
        prompts, outputs, times if at_arrival is not None else None, Path(origin).name,
        objectives=objectives if any(at is not None for at in own) else None,
    )  # fmt: skip


def _csv_rows(text: str, origin: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it ends in."""
    rows = csv.reader(text.splitlines())
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise WorkloadError(
            f"{origin}, line {rows.line_num}: {error}; leave out columns of texts, and close quotes"
        ) from error


def _instant(text: str) -> float:
    """A number, or a date as Azure writes it (seconds since 1970)."""
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def _ms(value: Any) -> float | None:
    return None if value in (None, "") else float(value)


def _blocks(found: Any) -> array[int]:
    """The ids of a prompt's blocks, 8 bytes each: a trace has hundreds of thousands."""
    if found is None:
        return array("Q")
    if not isinstance(found, list) or not all(map(_is_id, found)):
        raise ValueError(f"{_BLOCKS} must be a list of whole numbers from 0 to {_HIGHEST_BLOCK}")
    return array("Q", found)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _HIGHEST_BLOCK


def _from_mappings(rows: Mapping[str, Any], origin: str) -> RequestSet:
    """`rows`: by what a message calls each. Fields that one has all must have but
    objectives and ids."""
    if not rows:
        raise WorkloadError(f"{origin} holds no requests; give a file with at least one row")
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise WorkloadError(f"{origin}, {name}: no object with a request; correct or drop it")
    present = {field for row in rows.values() for field in row}
    prompt, output, arrival, factor = _columns(present, origin)
    prompts, outputs, times, objectives, blocks = [], [], [], [], []
    for name, row in rows.items():
        with _told_at(f"{origin}, {name}"):
            prompts.append(int(row[prompt]))
            outputs.append(int(row[output]))
            if arrival in present:
                times.append(float(row[arrival]) * factor)
            objectives.append(Objectives(*(_ms(row.get(own)) for own in _OBJECTIVES)))
            blocks.append(_blocks(row.get(_BLOCKS)))
    return RequestSet(
        prompts, outputs, times if arrival in present else None, Path(origin).name,
        objectives=objectives if present & {*_OBJECTIVES} else None,
        prefix_blocks=blocks if any(blocks) else None,
    )  # fmt: skip


def _from_ds(raw: bytes, origin: str) -> RequestSet:
    dataset = marshalled.parse(raw)
    requests = dataset.get("reqs", dataset.get("data"))
    if not isinstance(requests, list):
        raise WorkloadError(f"{origin} has neither a list reqs nor data; build it anew")
    for row, request in enumerate(requests):
        match request:
            case (str() | None, int(), int()) if type(request) is tuple:
                pass
            case _:
                raise WorkloadError(
                    f"{origin}, request {row} is no (text, prompt length, output length); "
                    "build it anew"
                )
    texts = [text for text, _, _ in requests]
    slos = dataset.get("slos")
    if slos is not None and len(slos) != len(requests):
        raise WorkloadError(
            f"{origin} has {len(slos)} slos for {len(requests)} requests; build it anew"
        )
    return RequestSet(
        [prompt for _, prompt, _ in requests],
        [output for _, _, output in requests],
        name=Path(origin).name,
        prompts=texts if all(isinstance(text, str) for text in texts) else None,
        objectives=None if slos is None else [Objectives(_ms(t), _ms(p)) for t, p in slos],
    )


def _columns(present: Iterable[str], origin: str) -> tuple[str, str, str, float]:
    names = set(present)
    fitting = [columns for columns in _COLUMNS if {columns[0], columns[1]} <= names]
    if not fitting:
        raise WorkloadError(
            f"{origin} lacks the columns prompt_len,output_len "
            f"(found: {', '.join(sorted(names)) or 'none'})"
        )
    # Two layouts share their length columns; the one whose arrival column is there decides.
    return next((columns for columns in fitting if columns[2] in names), fitting[0])
