"""`distserve bench run` where requests fail: a server that is bad, slow or gone."""

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from distserve.bench import session
from distserve.bench.datasets.builders import Request
from distserve.bench.datasets.prepare import write_ds
from distserve.bench.outcome import Outcome
from distserve.bench.progress import Progress
from distserve.bench.reading import read_run
from distserve.bench.results import failures

Run = Callable[..., tuple[int, str, str]]
Terminal = Callable[[], AbstractContextManager[Callable[[], None]]]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("refuses", "HTTP 500: the engine is gone"),
        ("mumbles", "HTTP 502"),
        ("moved", "HTTP 307; give the address"),
        ("page", "no event stream but text/html; correct --url"),
        ("truncates", "truncated stream"),
        ("fails", "error event: an engine died"),
        ("short", "fewer tokens than asked; if the server passes over ignore_eos"),
        ("null", "another shape than OpenAI's: Expected `array`, got `null`"),
        ("garbles", "no JSON; correct --url"),
        ("silent", "no tokens"),
        ("breaks", "HTTP 503"),
        ("small", "context length is 8 tokens; give it as --max-model-len, which leaves"),
        ("unknown", "HTTP 404: the model `unknown` does not exist; correct --url or --model"),
    ],
)
def test_a_server_that_never_answers_well_stops_it(bench: Run, model: str, said: str) -> None:
    code, _, err = bench("--model", model)
    assert code == 2
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("refuses", "HTTP 500: the engine is gone"),
        ("breaks", "HTTP 503"),
        ("moved", "HTTP 307; give the address"),
        ("page", "no JSON; correct --url"),
        ("truncates", "truncated answer"),
        ("fails", "error answer: an engine died"),
        ("short", "fewer tokens than asked"),
        ("null", "another shape than OpenAI's"),
        ("silent", "without a finish reason"),
        ("unfinished", "without a finish reason"),
        ("uncounted", "without usage; leave out --no-stream"),
    ],
)
def test_nor_is_a_bad_whole_answer_taken_for_a_good_one(bench: Run, model: str, said: str) -> None:
    code, _, err = bench("--model", model, "--no-stream")
    assert code == 2
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("--no-stream",)], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("then", "stream", "whole"),
    [
        ("busy", "HTTP 429: too many prompts wait", "HTTP 429: too many prompts wait"),
        ("refuses", "HTTP 500: the engine is gone", "HTTP 500: the engine is gone"),
        ("breaks", "HTTP 503", "HTTP 503"),
        ("truncates", "truncated stream", "truncated answer"),
        ("fails", "error event: an engine died", "error answer: an engine died"),
        ("short", "fewer tokens than asked", "fewer tokens than asked"),
    ],
)
def test_requests_that_fail_are_counted_and_meet_nothing(
    bench: Run, stub: Any, tmp_path: Path, words: Sequence[str], then: str, stream: str, whole: str
) -> None:
    stub.after, stub.then = 4, then  # one to warm up, three of five
    code, out, err = bench("--slo-ttft", "60s", "--slo-tpot", "60s", *words)
    reason = whole if words else stream
    lines = [f"sys-5-100.exp: 2 of 5 requests failed: {reason}"]
    if then == "truncates":
        lines.append(
            "sys-5-100.exp: too many connections failed: the same command makes this run anew"
        )
    assert (code, err.splitlines()) == (len(lines) - 1, lines)
    assert ("60.0%" in out) == (not words)
    run = read_run(tmp_path / "sys-5-100.exp")
    assert (run.requests, len(run.samples)) == (5, 3)
    with (tmp_path / "sys-5-100.csv").open() as file:
        assert [row["failure"] for row in csv.DictReader(file)].count(reason) == 2


@pytest.mark.parametrize(
    ("key", "user", "said"),
    [
        (None, "", "there is no variable BENCH_KEY; export it"),
        ("k\n", "", "BENCH_KEY has characters that no key has; correct it"),
        ("k", "me:word@", "a request has one; drop one"),
    ],
)
def test_a_key_that_cannot_be_sent(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch, key: str | None, user: str, said: str
) -> None:
    if key is not None:
        monkeypatch.setenv("BENCH_KEY", key)
    url = stub.url.replace("://", f"://{user}")
    code, _, err = bench("--api-key-env", "BENCH_KEY", "--url", url)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert stub.bodies == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "refuses"), "/v1/completions: HTTP 500"),
        (("--model", "hangs", "--timeout", "0.2"), "timed out after 0.2 s"),
        (("--url", "http://me:secret@127.0.0.1:0"), "'http://127.0.0.1:0' is no URL"),
        (("--url", "me:secret@127.0.0.1:8000"), "'127.0.0.1:8000' is no URL"),
        (("--url", "http:me:secret@127.0.0.1"), "'127.0.0.1' is no URL"),
    ],
)
def test_a_password_is_not_repeated(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], said: str
) -> None:
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.0)
    code, _, err = bench("--url", stub.url.replace("://", "://me:secret@"), *words)
    assert code == 2 and said in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("text", "tokens", "output"),
    [(" ".join(f"word{place}" for place in range(40)), 40, 1), ("=" * 50, 1, 4), ("ö", 1, 2)],
    ids=["few outputs", "few tokens", "short"],
)
def test_a_text_of_just_the_server_s_length_is_measured(
    bench: Run, stub: Any, tmp_path: Path, text: str, tokens: int, output: int
) -> None:
    write_ds(tmp_path / "one.ds", "one", [Request(text, tokens, output)])
    stub.longest = tokens + output
    words = ("--dataset", str(tmp_path / "one.ds"), "--max-model-len", str(stub.longest))
    code, _, err = bench(*words, "--num-prompts-req-rates", "[(1,100)]")
    assert (code, err) == (0, "")


def test_a_run_in_which_nothing_ends_still_moves(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    class Watched(Progress):
        def beat(self) -> None:
            drawn.append(len(stub.bodies))

    monkeypatch.setattr(session, "Progress", Watched)
    stub.after, stub.then = 1, "hangs"
    bench("--timeout", "0.5")
    assert drawn.count(6) > 1, "while all five were asked and none was answered"


def test_a_terminal_that_goes_away_costs_no_run(
    bench: Run, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(Progress):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            leave()

    monkeypatch.setattr(session, "Progress", Watched)
    with terminal() as leave:
        code, out, _ = bench()
    assert code == 0 and len(out.splitlines()) == 2
    assert len(read_run(tmp_path / "sys-5-100.exp").samples) == 5


def test_a_missing_extra_is_one_line(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    code, _, err = bench()
    assert code == 2 and len(err.splitlines()) == 1
    assert "uvloop is not installed, in a checkout: pip install '.[bench]'" in err


def test_a_server_that_does_not_answer_is_waited_for_aloud(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.0)
    code, _, err = bench("--model", "hangs", "--timeout", "2")
    waiting, ended = err.splitlines()
    assert code == 2 and ended.endswith("timed out after 2 s")
    assert waiting == (
        f"waiting for {stub.url}/v1/completions to answer the requests that warm it up, up to 2 s "
        "each (--timeout)"
    )


def test_a_server_that_dies_leaves_the_results_so_far(
    bench: Run, stub: Any, tmp_path: Path
) -> None:
    stub.after = 6
    code, _, err = bench("--num-prompts-req-rates", "[(5,100),(4,100),(3,100)]")
    assert code == 1
    assert "the remaining rates are left out" in err
    assert len(read_run(tmp_path / "sys-5-100.exp").samples) == 5
    assert not (tmp_path / "sys-3-100.exp").exists()
    stub.after = None
    code, _, err = bench("--num-prompts-req-rates", "[(5,100),(4,100),(3,100)]")
    assert code == 0 and [line.split("/")[-1] for line in err.splitlines()] == [
        "sys-5-100.exp is there, made with the same parameters: kept"
    ]
    assert len(read_run(tmp_path / "sys-4-100.exp").samples) == 4


def test_a_reason_is_one_whatever_numbers_it_has(bench: Run, stub: Any, tmp_path: Path) -> None:
    stub.after, stub.then = 2, "overloaded"
    code, _, err = bench()
    reason = r"HTTP 503: overloaded, \d+ wait, id req-\d+f \(and the like\)"
    assert code == 0
    assert re.fullmatch(rf"sys-5-100.exp: 4 of 5 requests failed: {reason}\n", err)
    counted = json.loads((tmp_path / "sys-5-100.run.json").read_text())["failures"]
    assert list(counted.values()) == [4]


@pytest.mark.parametrize(
    ("reasons", "counted"),
    [
        (["HTTP 503: a", "HTTP 502: a"], {"HTTP 503: a": 1, "HTTP 502: a": 1}),
        (["timed out after 2 s"] * 2, {"timed out after 2 s": 2}),
        (
            ["HTTP 400: 3000 tokens", "HTTP 400: 2900 tokens", "HTTP 400: 1 tokens"],
            {"HTTP 400: 3000 tokens (and the like)": 3},
        ),
        (['{"at":1,"m":"full"}', '{"at":2,"m":"off"}'], {'{"at":1,"m":"full"}': 1,
                                                         '{"at":2,"m":"off"}': 1}),
    ],
    ids=["statuses", "alike", "numbers", "json"],
)  # fmt: skip
def test_reasons_are_told_apart_by_their_words(
    reasons: Sequence[str], counted: dict[str, int]
) -> None:
    outcomes = [
        Outcome(at, 1, 1, planned=0.0, sent=0.0, ended=0.0, failure=reason)
        for at, reason in enumerate(reasons)
    ]
    assert failures(outcomes) == counted
