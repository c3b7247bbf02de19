"""Files that cannot be used are refused in one line, before they fill the memory or the time."""

import pytest

from distserve.workload import WorkloadError, parse_requests


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "prompt_len,output_len\n99999999999,4\n", "from 1 to 10000000 tokens"),
        ("x.csv", "prompt_len,output_len\n5,0\n", "from 1 to 10000000 tokens"),
        ("x.json", "[" * 100_000, "request set"),
        ("x.jsonl", "5\n6", "request set"),
        ("x.csv", "prompt_len,output_len\n5,4\x00\n", "line 2"),
    ],
    ids=["endless", "empty", "deep", "numbers", "nul"],
)
def test_files_that_hold_no_requests(name: str, text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        parse_requests(text, name)


@pytest.mark.parametrize("time", ["nan", "inf", "-1"])
def test_a_trace_goes_forward_and_ends(time: str) -> None:
    read = parse_requests(f"prompt_len,output_len,arrival_ms\n5,4,0\n5,4,{time}\n", "x.csv")
    with pytest.raises(WorkloadError, match="request 1"):
        read.recorded()
