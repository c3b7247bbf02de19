"""The bounded parser of `.ds` files agrees with Python's own, and refuses what is not data."""

import contextlib
import marshal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.workload import WorkloadError, read_requests
from distserve.workload.marshalled import MarshalError, parse

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 100), 1 << 100)
    | st.text()
    | st.floats(allow_nan=False)
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(1 << 100), 1 << 100), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(DATA, st.sampled_from([2, 4]))
def test_what_python_writes_is_read_back(value: Any, version: int) -> None:
    try:
        found = parse(marshal.dumps(value, version))
    except MarshalError as error:
        assert "nested deeper" in str(error)
        return
    assert found == value and type(found) is type(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(MarshalError, UnicodeDecodeError):
        parse(raw)


@given(DATA, st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_is_data_or_an_error(value: Any, place: int, byte: int) -> None:
    raw = bytearray(marshal.dumps(value))
    raw[place % len(raw)] = byte
    with contextlib.suppress(MarshalError, UnicodeDecodeError):
        parse(bytes(raw))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (marshal.dumps(compile("1", "x", "eval")), "no data"),
        (marshal.dumps(b"bytes"), "no data"),
        (marshal.dumps({1, 2}), "no data"),
        (marshal.dumps([1, 2])[:-1], "cut off"),
        (marshal.dumps([1]) + b"N", "too many"),
        (b"[\xff\xff\xff\x7f", "cut off"),
        (b"[\x01\x00\x00\x00" * 40, "nested deeper"),
        (b"r\x00\x00\x00\x00", "not there"),
        (b"\xdb\x01\x00\x00\x00r\x00\x00\x00\x00", "not there"),  # a list that holds itself
        (b"l\xff\xff\xff\x7f", "120 bits"),
        (b"", "cut off"),
        (b"0", "an end where a value is due"),
    ],
)
def test_what_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(MarshalError, match=said):
        parse(raw)


def test_shared_texts_are_written_once_and_read_everywhere() -> None:
    text = "a shared text that is not interned, " * 3
    rows = [(text, 3, 4), (text, 3, 5)]
    assert parse(marshal.dumps({"reqs": rows})) == {"reqs": rows}


def test_texts_come_with_a_ds_file(tmp_path: Any) -> None:
    path = tmp_path / "a.ds"
    path.write_bytes(
        marshal.dumps({"dataset_name": "x", "data": [("hi\ud800", 7, 2), ("ö", 9, 3)]})
    )
    requests = read_requests(path)
    assert requests.prompts == ["hi\ud800", "ö"]
    drawn = requests.sample(2, 0)
    assert drawn.prompts is not None
    assert dict(zip(drawn.prompts, drawn.prompt_tokens, strict=True)) == {"hi\ud800": 7, "ö": 9}


@pytest.mark.parametrize(
    "rows", [3, [3], [("a", 1)], [("a", 1, "b")], [["a", 1, 2]], [("a", 0, 1)]]
)
def test_a_ds_file_of_another_make_is_one_error(tmp_path: Any, rows: Any) -> None:
    path = tmp_path / "a.ds"
    path.write_bytes(marshal.dumps({"reqs": rows}))
    with pytest.raises(WorkloadError):
        read_requests(path)


def test_azure_s_own_csv(tmp_path: Any) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    )
    trace = read_requests(path).recorded()
    assert list(trace.arrival_ms) == pytest.approx([0, 4314.579], abs=0.01)
    assert list(trace.prompt_tokens) == [374, 396]


def test_the_first_of_a_trace_keep_their_times(tmp_path: Any) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(
            f'{{"timestamp": {at}, "input_length": 5, "output_length": 2, "hash_ids": [0]}}\n'
            for at in (0, 100, 350)
        )
    )
    assert read_requests(path).first(2).arrival_ms == [0, 100]
    with pytest.raises(WorkloadError, match="has 3 requests"):
        read_requests(path).first(4)
