"""Files that cannot be used are refused in one line, before they fill the memory or the time."""

import gzip
from pathlib import Path

import pytest

from distserve.workload import RequestSet, WorkloadError, parse_requests, read_requests, readers

ROW, TIME = '{"prompt_len": 5, "output_len": 4}', '"start_time"'
LINE = '{"input_length": 5, "output_length": 4}'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "prompt_len,output_len\n99999999999,4\n", "from 1 to 10000000 tokens"),
        ("x.csv", "prompt_len,output_len\n5,0\n", "from 1 to 10000000 tokens"),
        ("x.json", "[" * 100_000, "request set"),
        ("x.jsonl", "5\n6", "x.jsonl, line 1: no object with a request; correct or drop it"),
        ("x.json", '{"prompt_len": 5}', "request 0: no object"),
        ("x.json", '[{"prompt_len": 1e999, "output_len": 4}]', "request 0: .*infinity"),
        ("x.json", f"[{ROW[:-1]}, {TIME}: {'9' * 400}}}]", "request 0: .*too large"),
        ("x.json", f"[{ROW[:-1]}, {TIME}: 1}}, {ROW}]", "request 1: lacks start_time; correct"),
        ("x.json", f"[{ROW}, {{}}]", "request 1: lacks prompt_len; correct or drop it"),
        ("x.jsonl", f"{LINE}\n\n{LINE[:-1]}", "x.jsonl, line 3: no JSON: Expecting .* column 3"),
        ("x.jsonl", '{LINE}\n{"input_length": 5}', "line 1: no JSON"),
        ("x.jsonl", LINE + '\n{"input_length": 5}\n', "line 2: lacks output_length; correct"),
        ("x.jsonl", f'{LINE[:-1]}, "timestamp": 3}}\n{LINE}', "line 2: lacks timestamp"),
        ("x.jsonl", f'{LINE}\n{LINE[:-1]}, "timestamp": 3}}', "line 1: lacks timestamp"),
        *(
            (
                "x.jsonl",
                f'{LINE}\n{LINE[:-1]}, "hash_ids": {ids}}}',
                "line 2: hash_ids must be a list",
            )
            for ids in ("7", '"ab"', "{}", "[1, -1]", "[1.0]", "[true]", "[null]", f"[{2**64}]")
        ),
        ("x.csv", "prompt_len,output_len,arrival_ms\n5,4,0\n5,4\n", "line 3: list index"),
        ("x.csv", "prompt_len,output_len\n5,4\x00\n", "line 2"),
        (
            "x.csv",
            f"prompt_len,output_len,text\n5,4,a\n5,4,{'x' * 200_000}\n",
            "x.csv, line 3: field larger than field limit .*; leave out columns of texts",
        ),
        ("x.csv", "y" * 200_000, "x.csv, line 1: field larger"),
    ],
)
def test_files_that_hold_no_requests(name: str, text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        parse_requests(text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "prompt_len,output_len\n\n5,4\n\n"),
        ("x.json", f"[{ROW}]"),
        ("x.jsonl", f"\n{LINE}\r\n\r\n"),
    ],
)
def test_blank_lines_and_a_mark_at_the_begin_are_passed_over(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_requests(tmp_path / name)
    assert (list(found.prompt_tokens), list(found.output_tokens)) == ([5], [4])


@pytest.mark.parametrize("time", ["nan", "inf", "-1"])
def test_a_trace_goes_forward_and_ends(time: str) -> None:
    read = parse_requests(f"prompt_len,output_len,arrival_ms\n5,4,0\n5,4,{time}\n", "x.csv")
    with pytest.raises(WorkloadError, match="request 1"):
        read.recorded()


def test_what_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = b'[{"prompt_len": 5, "output_len": 4}]'
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(row + b" " * (3 << 20)))
    text = b"prompt_len,output_len\n5,4\n"
    (tmp_path / "parts.csv.gz").write_bytes(gzip.compress(text) + gzip.compress(b"6,3\n"))
    assert len(read_requests(tmp_path / "x.json.gz")) == 1, "far from the limit"
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 2 << 20)
    with pytest.raises(WorkloadError, match="unpacks to more than 2 MiB; unpack it with gunzip"):
        read_requests(tmp_path / "x.json.gz")
    assert len(read_requests(tmp_path / "parts.csv.gz")) == 2


def test_ids_of_blocks_stay_with_their_lengths() -> None:
    asked = [(600 + n, [0, n]) for n in range(20)]
    lines = [f'{LINE[:-1]}, "input_length": {n}, "hash_ids": {ids}}}' for n, ids in asked]
    lines[3:5] = [LINE, f'{LINE[:-1]}, "hash_ids": null}}']
    asked[3:5] = [(5, []), (5, [])]
    found = parse_requests("\n".join(lines), "x.jsonl")

    def rows(some: RequestSet) -> list[tuple[int, list[int]]]:
        assert some.prefix_blocks is not None
        return [
            (n, list(ids)) for n, ids in zip(some.prompt_tokens, some.prefix_blocks, strict=True)
        ]

    assert rows(found) == asked
    assert rows(found.first(6)) == asked[:6]
    assert rows(found.within(610)) == asked[:7]
    for drawn in (found.sample(20, 1), found.resample(50, 1)):
        assert rows(drawn) != asked and all(row in asked for row in rows(drawn))
    assert parse_requests(f"{LINE}\n{LINE}", "x.jsonl").prefix_blocks is None
