"""What is kept of earlier calls, what is refused beside it, and that the cure cures."""

import json
import marshal
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from distserve.bench.reading import read_run

Run = Callable[..., tuple[int, str, str]]

OTHER_LENGTHS = ("--dataset", "synthetic:fixed,prompt=7,output=4")


def pairs(text: str) -> tuple[str, str]:
    return ("--num-prompts-req-rates", text)


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def retold(path: Path, **parameters: Any) -> None:
    about = told(path)
    about["parameters"] |= parameters
    path.write_text(json.dumps(about))


def requests_file(path: Path, prompt_tokens: int) -> tuple[str, str]:
    path.write_text("prompt_len,output_len\n" + f"{prompt_tokens},4\n" * 5)
    return ("--dataset", str(path))


def refused(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    return err


def named(message: str) -> set[Path]:
    return {Path(path) for path in re.findall(r"/\S+?\.(?:exp|run\.json)\b", message)}


def test_runs_of_a_prefix_are_asked_alike_at_every_rate(
    bench: Run, stub: Any, tmp_path: Path
) -> None:
    assert bench()[0] == 0
    before = len(stub.bodies)
    err = refused(bench(*OTHER_LENGTHS, *pairs("[(3,200)]")))
    assert "made with another dataset: " in err and len(stub.bodies) == before
    assert named(err) == {tmp_path / "sys-5-100.exp", tmp_path / "sys-5-100.run.json"}
    # Another system's files are nobody else's, however much of its name they share.
    assert bench(*OTHER_LENGTHS, "--prefix", "sys-2")[0] == 0
    assert bench(*pairs("[(3,200)]"))[0] == 0
    assert bench(*pairs("[(4,inf)]"), "--seed", "7")[0] == 0


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        ("", ("--seed", "1"), "another seed"),
        ("", (*OTHER_LENGTHS, *pairs("[(2,50)]")), "another dataset"),
        ("", ("--burst-size", "2", "--request-distribution", "burst"), "burst_size, request_dis"),
        ("sys-5-100.run.json", (), "is damaged"),
        ("sys-3-200.run.json", (), "is damaged"),
        ("no records", (), "is damaged"),
        ("a list", (), "is damaged"),
        ("no verdict", (), "not from this client"),
    ],
    ids=[
        "seed",
        "rate",
        "arrivals",
        "damaged",
        "damaged beside it",
        "no records",
        "a list",
        "a stranger",
    ],
)
def test_who_deletes_what_is_named_can_go_on(
    bench: Run, tmp_path: Path, spoil: str, words: tuple[str, ...], said: str
) -> None:
    assert bench(*pairs("[(5,100),(3,200)]"))[0] == 0
    if spoil.endswith(".json"):
        (tmp_path / spoil).write_text("{")
    elif spoil == "no records":
        (tmp_path / "sys-5-100.exp").unlink()
        (tmp_path / "sys-5-100.run.json").write_text('{"parameters": {}}')
    elif spoil == "a list":
        path = tmp_path / "sys-5-100.run.json"
        path.write_text(json.dumps(told(path) | {"parameters": [5, 100]}))
    elif spoil == "no verdict":
        (tmp_path / "sys-5-100.run.json").unlink()
    if said == "another dataset":
        (tmp_path / "sys-3-200.exp").unlink()  # as a run leaves it that is interrupted
    err = refused(bench(*words))
    assert said in err and "delete" in err
    for path in named(err):
        path.unlink()
    assert bench(*words)[0] == 0


def test_a_kept_run_is_judged_by_the_limit_of_now(
    bench: Run, late_run: Callable[[], Path], stub: Any, tmp_path: Path
) -> None:
    path = late_run()
    code, _, err = bench("--max-lag", "2h")
    assert code == 0 and "kept" in err
    assert (told(path)["valid"], told(path)["max_lag_ms"]) == (True, 7_200_000)
    assert read_run(tmp_path / "sys-5-100.exp").valid
    before = len(stub.bodies)
    code, _, err = bench()
    assert code == 0 and err == (
        f"{tmp_path / 'sys-5-100.exp'}: sends late by 3600000.0 ms, above --max-lag 60000ms: made "
        "anew\n"
    )
    assert len(stub.bodies) == before + 6
    assert told(path)["lag"]["send_p99_ms"] < 60_000


def test_a_run_that_lost_its_server_is_made_anew(bench: Run, stub: Any, tmp_path: Path) -> None:
    stub.after, stub.then = 2, "truncates"
    assert bench()[0] == 1
    stub.after = None
    code, _, err = bench()
    assert (code, err) == (
        0, f"{tmp_path / 'sys-5-100.exp'}: the connections of 4 requests failed: made anew\n"
    )  # fmt: skip
    assert told(tmp_path / "sys-5-100.run.json")["failures"] == {}
    assert "kept" in bench()[2]


def test_a_kept_run_says_what_failed_and_how_to_ask_again(
    bench: Run, stub: Any, tmp_path: Path
) -> None:
    stub.after = 2
    assert bench()[0] == 0
    stub.after = None
    path = tmp_path / "sys-5-100.exp"
    code, _, err = bench()
    assert (code, err.splitlines()) == (0, [
        f"{path} is there, made with the same parameters: kept, failed requests too; delete it to "
        "have them asked again",
        "sys-5-100.exp: 4 of 5 requests failed: HTTP 429: too many prompts wait",
    ])  # fmt: skip
    path.unlink()
    assert bench()[0] == 0 and told(tmp_path / "sys-5-100.run.json")["failures"] == {}


def test_a_file_is_known_by_what_is_in_it(bench: Run, tmp_path: Path) -> None:
    first, about = tmp_path / "first.csv", tmp_path / "sys-5-100.run.json"
    words = requests_file(first, 6)
    assert bench(*words)[0] == 0
    content = told(about)["parameters"]["dataset_content"]
    assert content["bytes"] == first.stat().st_size and len(content["sha256"]) == 64
    moved = requests_file(tmp_path / "second.csv", 6)
    assert "kept" in bench(*moved)[2]
    requests_file(first, 7)
    assert "another dataset_content: " in refused(bench(*words))
    assert "another dataset_content: " in refused(bench(*words, *pairs("[(3,200)]")))
    # Before content was kept a file was its path.
    earlier = told(about)
    del earlier["parameters"]["dataset_content"]
    about.write_text(json.dumps(earlier))
    assert "another dataset: " in refused(bench(*moved))
    assert "kept" in bench(*words)[2]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (("uniform",), ("fixed",)),
        (("gamma",), ("gamma", "--cv", "1")),
        (("burst", "--burst-size", "10"), ("burst",)),
    ],
    ids=str,
)
def test_one_meaning_is_one_question(
    bench: Run, tmp_path: Path, first: tuple[str, ...], again: tuple[str, ...]
) -> None:
    assert bench("--request-distribution", *first)[0] == 0
    assert "kept" in bench("--request-distribution", *again)[2]
    # Before, they were kept as they had been typed.
    typed = {"request_distribution": first[0], "cv": None, "burst_size": None}
    retold(tmp_path / "sys-5-100.run.json", **typed)
    assert "kept" in bench("--request-distribution", *again)[2]
    assert "request_distribution: " in refused(bench())


def test_all_at_once_is_json_and_found_again(bench: Run, tmp_path: Path) -> None:
    def no_number(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    path = tmp_path / "sys-5-inf.run.json"
    assert bench(*pairs("[(5,inf)]"))[0] == 0
    about = json.loads(path.read_text(), parse_constant=no_number)
    assert about["parameters"]["rate"] == "inf"
    assert "kept" in bench(*pairs("[(5,inf)]"))[2]
    retold(path, rate=float("inf"))  # as it was written before
    assert "kept" in bench(*pairs("[(5,inf)]"))[2]
    json.loads(path.read_text(), parse_constant=no_number)


def test_an_event_loop_that_was_late_is_told_too(bench: Run, tmp_path: Path) -> None:
    assert bench()[0] == 0
    path = tmp_path / "sys-5-100.run.json"
    about = told(path)
    about["lag"]["loop_p99_ms"] = 70_000.0
    path.write_text(json.dumps(about))
    assert "its event loop late by 70000.0 ms, above --max-lag 60000ms: made anew" in bench()[2]


def test_what_is_made_anew_has_prompts_of_its_own(
    bench: Run, late_run: Callable[[], Path], stub: Any
) -> None:
    """The server that runs on knows those of the first attempt."""
    path = late_run()
    assert told(path)["attempt"] == 1
    for attempt in (2, 3):
        assert bench("--max-lag", "0ms")[0] == 1
        assert told(path)["attempt"] == attempt
    assert "kept" in bench()[2] and told(path)["attempt"] == 3
    prompts = [tuple(body["prompt"]) for body in stub.bodies]
    measured = [prompts[first : first + 5] for first in (1, 7, 13)]  # one before to warm up
    assert len({prompt for run in measured for prompt in run}) == 15


def test_texts_that_are_sent_once_more_are_spoken_of(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "two.ds"
    path.write_bytes(marshal.dumps({"reqs": [("hi you", 2, 4), ("ho", 1, 3)]}))
    words = ("--dataset", str(path), *pairs("[(2,100)]"))
    line = (
        "the set's texts are sent again, and a prefix cache knows them: start the server anew, or "
        "switch its prefix cache off"
    )
    assert line not in bench(*words)[2]
    assert line not in bench(*words)[2], "it is kept"
    assert line in bench(*words, "--max-lag", "0ms")[2].splitlines()


def test_what_is_kept_needs_no_room(
    bench: Run, tmp_path: Path, no_room: Callable[[], AbstractContextManager[None]]
) -> None:
    assert bench()[0] == 0
    path = tmp_path / "sys-5-100.run.json"
    path.write_text(json.dumps(told(path) | {"failures": {"x" * 1000: 0}}))
    before = path.read_bytes()
    with no_room():
        assert bench()[0] == 0
    assert path.read_bytes() == before


def test_a_curve_s_files_may_have_two_formats(bench: Run) -> None:
    assert bench()[0] == 0
    words = ("--exp-format", "loongserve")
    assert bench(*words, *pairs("[(3,200)]"))[0] == 0
    assert "another exp_format: " in refused(bench(*words))


@pytest.mark.parametrize(
    ("earlier", "words"),
    [
        ({"prompt_format": "auto", "token_ids": "10:1000"}, ()),
        ({"prompt_format": "auto", "token_ids": None}, ("--prompt-format", "tokens")),
        ({"prompt_format": "text", "token_ids": "10:1000"}, ("--prompt-format", "text")),
        ({"prompt_format": "auto", "token_ids": "10:1000"}, ("--endpoint", "chat")),
    ],
    ids=str,
)
def test_prompts_are_known_by_what_was_sent(
    bench: Run, tmp_path: Path, earlier: dict[str, Any], words: tuple[str, ...]
) -> None:
    assert bench(*words)[0] == 0
    retold(tmp_path / "sys-5-100.run.json", **earlier)
    assert "kept" in bench(*words)[2]


def test_runs_of_shared_prompts_are_spoken_of(bench: Run, tmp_path: Path) -> None:
    def said(*words: str) -> list[str]:
        code, _, err = bench(*words)
        assert code == 0
        return [line for line in err.splitlines() if "the same prompts" in line]

    assert said(*pairs("[(5,100),(3,200)]")) == said(*pairs("[(5,100),(3,200)]")) == []
    path = tmp_path / "sys-5-100.run.json"
    about = told(path)
    assert about["parameters"].pop("prompts") == "of each rate"
    path.write_text(json.dumps(about))
    line = (
        "sys-5-100.exp: made when all rates had the same prompts, which a prefix cache knows; "
        "delete the runs to have them made anew"
    )
    assert said() == [line], "kept"
    assert said(*pairs("[(4,200)]")) == [line], "beside it"
    assert "prompts" not in told(path)["parameters"]
    for file in tmp_path.glob("sys-5-100.*"):
        file.unlink()
    assert said() == []


def test_runs_that_shared_no_prefixes_are_no_part_of_a_curve_that_does(
    bench: Run, stub: Any, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [0, 1]}\n'
    path.write_text(line + line.replace("[0, 1]", "[0, 2]"))
    words = ("--dataset", str(path), "--request-distribution", "recorded", *pairs("[(2,None)]"))
    assert bench(*words)[0] == 0
    first, second = (body["prompt"] for body in stub.bodies[-2:])
    assert first[:512] == second[:512] and first[512:] != second[512:]
    assert "kept" in bench(*words)[2]
    retold(tmp_path / "sys-2-recorded.run.json", shared_prefixes=None)
    assert "made with another shared_prefixes: " in refused(bench(*words))
