"""`distserve bench run` against a server in this process: what it sends, counts and keeps."""

import csv
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distserve.bench import prompts
from distserve.bench.outcome import Planned
from distserve.bench.plan import Recipe
from distserve.bench.question import Pair
from distserve.bench.reading import read_run

Run = Callable[..., tuple[int, str, str]]


def test_a_run_is_kept_in_three_files(bench: Run, stub: Any, tmp_path: Path) -> None:
    code, out, err = bench("--slo-ttft", "60s", "--slo-tpot", "60s")
    assert (code, err) == (0, "")
    assert "100.0%" in out
    rows = json.loads((tmp_path / "sys-5-100.exp").read_text())
    assert len(rows) == 5
    for row in rows:
        assert set(row) == {
            "prompt_len", "output_len", "start_time", "end_time", "token_timestamps",
            "lifecycle_events", "latency", "ftl", "tpot",
        }  # fmt: skip
        assert (row["prompt_len"], row["output_len"], len(row["token_timestamps"])) == (6, 4, 4)
        assert row["ftl"] == pytest.approx(row["token_timestamps"][0] - row["start_time"], abs=1e-5)
        span = row["token_timestamps"][-1] - row["token_timestamps"][0]
        assert row["tpot"] == pytest.approx(span / 3, abs=1e-5)
    with (tmp_path / "sys-5-100.csv").open() as file:
        assert [row["failure"] for row in csv.DictReader(file)] == [""] * 5
    about = json.loads((tmp_path / "sys-5-100.run.json").read_text())
    assert (about["completed"], about["failures"], about["valid"]) == (5, {}, True)


def test_what_is_sent(bench: Run, stub: Any) -> None:
    bench("--slo-ttft", "250ms", "--slo-tpot", "0.1s", "--token-ids", "50:60")
    assert len(stub.bodies) == 6  # one to warm up
    body = stub.bodies[-1]
    assert len(body["prompt"]) == 6 and all(50 <= token < 60 for token in body["prompt"])
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (4, True, True)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    headers = {name.lower(): value for name, value in stub.headers[-1].items()}
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tpot-ms"]) == ("250", "100")


def test_a_complete_run_is_kept_and_another_question_is_refused(
    bench: Run, stub: Any, tmp_path: Path
) -> None:
    bench()
    first = (tmp_path / "sys-5-100.exp").read_bytes()
    code, out, err = bench("--num-prompts-req-rates", "[(5,100),(3,200)]")
    assert code == 0 and "kept" in err
    assert (tmp_path / "sys-5-100.exp").read_bytes() == first
    assert (tmp_path / "sys-3-200.exp").exists()
    assert len(out.splitlines()) == 3
    code, _, err = bench("--seed", "1")
    assert code == 2
    assert "another seed" in err and len(err.splitlines()) == 1


def test_an_invalid_run_is_marked_and_done_again(bench: Run, stub: Any, tmp_path: Path) -> None:
    code, out, err = bench("--max-lag", "0ms")
    assert code == 1
    assert "INVALID" in err and "a lower rate" in err and out.rstrip().endswith("NO")
    assert not json.loads((tmp_path / "sys-5-100.run.json").read_text())["valid"]
    before = len(stub.bodies)
    code, _, err = bench("--max-lag", "0ms")
    assert code == 1 and "kept" not in err
    assert len(stub.bodies) == before + 6


@pytest.mark.parametrize(
    "words",
    [
        ("--num-prompts-req-rates", "[(5,inf)]"),
        ("--request-distribution", "burst", "--burst-size", "3"),
    ],
    ids=str,
)
def test_who_asks_for_many_at_once_is_not_told_to_ask_slower(
    bench: Run, words: Sequence[str]
) -> None:
    code, _, err = bench("--max-lag", "0ms", *words)
    assert code == 1 and "INVALID" in err
    assert "fewer at one instant" in err and "a lower rate" not in err


@pytest.mark.parametrize("words", [(), ("--no-stream",)], ids=["stream", "whole"])
def test_no_answer_is_asked_for_squeezed(bench: Run, words: Sequence[str]) -> None:
    code, _, err = bench("--model", "squeezes", *words)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("count", [1, 3, 12])
def test_so_many_warm_it_up_as_are_asked(bench: Run, stub: Any, count: int) -> None:
    assert bench("--warm-up", str(count))[0] == 0
    asked = [tuple(body["prompt"]) for body in stub.bodies]
    assert len(asked) == len(set(asked)) == count + 5


def test_the_prompts_of_a_rate_are_made_for_it_and_gone_after_it(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plan(list[Planned]):
        """Can be watched."""

    made: list[weakref.ref[Plan]] = []
    plan = Recipe.plan

    def watched(recipe: Recipe, pair: Pair, attempt: int) -> list[Planned]:
        assert [one() for one in made] == [None] * len(made)
        assert len(stub.bodies) == 1 + 5 * len(made)
        found = Plan(plan(recipe, pair, attempt))
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Recipe, "plan", watched)
    assert bench("--num-prompts-req-rates", "[(5,100),(5,200),(5,300)]")[0] == 0
    assert len(made) == 3


def test_a_mistake_in_the_last_pair_is_told_before_the_first_leaves(
    bench: Run, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MOST_MADE_UP_TOKENS", 40)
    for last, said in (("(3,None)", "recorded"), ("(7,100)", "42 tokens of made-up prompts")):
        code, _, err = bench("--num-prompts-req-rates", f"[(5,100),{last}]")
        assert code == 2 and said in err
        assert stub.bodies == []
    # As many as there is room for, pair by pair.
    assert bench("--num-prompts-req-rates", "[(5,100),(6,100)]")[0] == 0


def test_texts_that_come_again_are_spoken_of(bench: Run, stub: Any, tmp_path: Path) -> None:
    import marshal

    path = tmp_path / "three.ds"
    texts = [("hi you", 2, 4), ("ho", 1, 3), ("well now then", 3, 3)]
    path.write_bytes(marshal.dumps({"reqs": texts}))

    def said(pairs: str, *words: str) -> str:
        code, _, err = bench("--dataset", str(path), "--num-prompts-req-rates", pairs, *words)
        assert code == 0
        return err

    line = (
        "the set's texts are sent again at each rate, and a prefix cache knows them: ask for "
        "one rate at a time, the server started anew before each or with a --seed of its own, or "
        "switch its cache off\n"
    )
    assert said("[(2,100),(3,200)]") == line
    assert line not in said("[(2,100),(3,200)]")  # both are kept
    assert said("[(2,100),(3,200)]", "--prompt-format", "tokens", "--prefix", "ids") == ""
    # And so it is done.
    assert said("[(2,100)]", "--prefix", "apart") == ""
    assert said("[(3,200)]", "--prefix", "apart", "--seed", "1") == ""


def test_other_servers(bench: Run, tmp_path: Path) -> None:
    code, _, err = bench("--model", "plain", "--prefix", "plain")
    assert code == 0 and "counted by events" in err
    code, _, err = bench("--model", "exact", "--prefix", "exact")
    assert code == 0 and "counted by events" in err
    code, _, err = bench("--model", "strict", "--prefix", "strict")
    assert code == 2 and "--no-ignore-eos" in err
    code, _, err = bench("--model", "strict", "--prefix", "strict", "--no-ignore-eos")
    assert code == 0
    code, _, err = bench("--model", "pairs", "--prefix", "pairs")
    assert code == 0
    (row, *_) = json.loads((tmp_path / "pairs-5-100.exp").read_text())
    assert len(row["token_timestamps"]) == row["output_len"] == 4
    assert row["token_timestamps"][0] == row["token_timestamps"][1]


def test_whole_answers_have_a_latency_only(bench: Run, tmp_path: Path) -> None:
    code, out, _ = bench("--no-stream", "--slo-ttft", "1s", "--slo-tpot", "1s")
    assert code == 0 and "%" not in out
    (row, *_) = json.loads((tmp_path / "sys-5-100.exp").read_text())
    assert row["ftl"] is None and row["latency"] > 0 and row["output_len"] == 4


def test_loongserve_s_file(bench: Run, tmp_path: Path) -> None:
    assert (bench("--exp-format", "loongserve"))[0] == 0
    run = read_run(tmp_path / "sys-5-100.exp")
    assert len(run.samples) == 5
    assert run.samples[0].ttft is not None and run.samples[0].output_tokens == 4


def test_a_text_s_chat(bench: Run, stub: Any, tmp_path: Path) -> None:
    import marshal

    path = tmp_path / "two.ds"
    path.write_bytes(marshal.dumps({"reqs": [("hi you", 2, 4), ("ho", 1, 3)]}))
    words = ["--dataset", str(path), "--num-prompts-req-rates", "[(2,100)]"]
    assert (bench(*words, "--endpoint", "chat"))[0] == 0
    asked = {body["messages"][0]["content"] for body in stub.bodies[1:]}
    assert asked == {"hi you", "ho"}


@pytest.mark.parametrize("words", [(), ("--no-stream",)], ids=["stream", "whole"])
def test_a_server_that_counts_prompts_otherwise(
    bench: Run, tmp_path: Path, words: Sequence[str]
) -> None:
    """A text's length is what the server made of it; token ids are what was sent."""
    import marshal

    path = tmp_path / "two.ds"
    path.write_bytes(marshal.dumps({"reqs": [("hi you", 5, 4), ("ho", 1, 3)]}))
    two = ["--dataset", str(path), "--num-prompts-req-rates", "[(2,100)]", *words]
    for kind, off, prompt_lens in (("texts", -3, {1, 2}), ("ids", None, {5, 1})):
        more = ["--prompt-format", "tokens"] if kind == "ids" else []
        code, _, err = bench(*two, *more, "--prefix", kind)
        assert code == 0
        rows = json.loads((tmp_path / f"{kind}-2-100.exp").read_text())
        assert {row["prompt_len"] for row in rows} == prompt_lens
        about = json.loads((tmp_path / f"{kind}-2-100.run.json").read_text())
        assert about["prompts_off"] == (off and {"requests": 1, "mean_tokens": off})
        assert ("1 of 2 prompts otherwise than planned (-3.0 tokens" in err) == bool(off)
    assert bench(*words, "--model", "adds")[2].startswith(
        "sys-5-100.exp: the server counts 5 of 5 prompts otherwise than planned (+1.0 tokens"
    )
    rows = json.loads((tmp_path / "sys-5-100.exp").read_text())
    assert {row["prompt_len"] for row in rows} == {6}
    kept, remark = bench(*words, "--model", "adds")[2].splitlines()
    assert kept.endswith("kept") and "the server counts 5 of 5 prompts otherwise" in remark


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "localhost:8000"], "no URL"),
        (["--url", "http://127.0.0.1:99999"], "no URL"),
        (["--url", "http://"], "no URL"),
        (["--url", "http://127.0.0.1:9"], "cannot connect"),
        (["--num-prompts-req-rates", "5,1"], "give a list"),
        (["--num-prompts-req-rates", "[(5,0)]"], "not above 0"),
        (["--num-prompts-req-rates", "[(5,1),(5,1.0)]"], "twice"),
        (["--num-prompts-req-rates", "[(5,None)]"], "recorded"),
        (["--dataset", "nothing.csv"], "nothing.csv"),
        (["--dataset", "synthetic:nothing"], "unknown synthetic set"),
        (["--dataset", "synthetic:fixed,prompt=1"], "lacks output"),
        (["--dataset", "synthetic:fixed,prompt=1,output=2,colour=3"], "no colour"),
        (["--request-distribution", "recorded"], "records no arrival times"),
        (["--request-distribution", "never"], "unknown arrival process"),
        (["--slo-ttft", "250"], "no duration"),
        (["--token-ids", "7"], "LOW:HIGH"),
        (["--prefix", "a/b"], "no part of a file name"),
        (["--warm-up", "-1"], "--warm-up -1: give 0 to 1000000"),
        (["--gpus", "0"], "--gpus 0: give 1 to"),
        (["--gpus", "9" * 400], "give 1 to 1000000"),
        (["--timeout", "inf"], "--timeout inf: give 0.001 to 1000000"),
        (["--timeout", "nan"], "--timeout nan: give 0.001"),
        (["--timeout", "0"], "--timeout 0.0: give 0.001"),
        (["--num-prompts-req-rates", f"[(5,{'9' * 400})]"], "9999...' is no list of pairs"),
        (["--dataset", "synthetic:lognormal,prompt=1e308/1.7e308,output=1/1"], "at most 10000000"),
        (["--dataset", "synthetic:zipf,alpha=-1e308"], "smaller numbers"),
        (["--dataset", "synthetic:adaserve,shares=1e308/1e308/1e308"], "smaller numbers"),
        (["--output-dir", "/proc/results"], "can be written"),
        (["--seed", "-1"], "from 0 to 4294967295, got -1"),
        (["--seed", "4294967296", "--request-distribution", "gamma"], "from 0 to 4294967295"),
        (["--seed", "4294967296", "--request-distribution", "window"], "from 0 to 4294967295"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(bench: Run, words: list[str], said: str) -> None:
    code, out, err = bench(*words)
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1
