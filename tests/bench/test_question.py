"""What a command asks for is what is sent: the same requests for every system, no idle flags."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import distserve.models

Run = Callable[..., tuple[int, str, str]]

LENGTHS = ("--dataset", "synthetic:lognormal,prompt=9/12,output=4/6,limit=40")


def sent(stub: Any, first: int, count: int) -> list[tuple[str, int]]:
    """Prompts and outputs of so many requests, from one on; they may arrive in another order."""
    bodies = stub.bodies[first : first + count]
    return sorted((str(body["prompt"]), body["max_tokens"]) for body in bodies)


def test_a_pair_s_requests_do_not_depend_on_the_pairs_beside_it(bench: Run, stub: Any) -> None:
    assert bench(*LENGTHS)[0] == 0
    alone, before = sent(stub, 1, 5), len(stub.bodies)
    pairs = ("--num-prompts-req-rates", "[(5,100),(30,500)]")
    assert bench(*LENGTHS, *pairs, "--prefix", "other")[0] == 0
    assert sent(stub, before + 1, 5) == alone
    assert len(stub.bodies) == before + 1 + 35


@pytest.mark.parametrize("dataset", ["lognormal,prompt=9/12,output=4/6", "zipf,alpha=1.2,output=4"])
def test_what_the_model_cannot_hold_is_drawn_anew(bench: Run, stub: Any, dataset: str) -> None:
    pairs = ("--num-prompts-req-rates", "[(40,500)]")
    code, _, err = bench("--dataset", f"synthetic:{dataset}", *pairs, "--max-model-len", "14")
    assert (code, err) == (0, "")
    whole = [len(body["prompt"]) + body["max_tokens"] for body in stub.bodies]
    assert len(whole) == 41 and max(whole) <= 14


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cv", "2"), "--cv has no effect on poisson arrivals; leave it out"),
        (("--request-distribution", "uniform", "--cv", "2"), "--cv has no effect on fixed"),
        (("--burst-size", "2"), "--burst-size has no effect on poisson"),
        (("--request-distribution", "gamma", "--burst-size", "2"), "no effect on gamma"),
        (("--request-distribution", "gamma", "--cv", "0"), "cv must be from 0.001 to 100"),
        (("--request-distribution", "gamma", "--cv", "inf"), "cv must be from 0.001 to 100"),
        (("--request-distribution", "burst", "--burst-size", "0"), "at least 1"),
        (("--endpoint", "chat", "--prompt-format", "tokens"), "chat takes no token ids"),
        (("--endpoint", "chat", "--token-ids", "5:9"), "--token-ids has no effect on prompts"),
        (("--prompt-format", "text", "--token-ids", "5:9"), "--token-ids has no effect on prompts"),
        (("--max-model-len", "9"), "fits 9 tokens"),
        (("--dataset", "synthetic:fixed,prompt=inf,output=1"), "no NAME=VALUE"),
    ],
    ids=str,
)
def test_a_flag_has_an_effect_or_is_refused(
    bench: Run, stub: Any, words: tuple[str, ...], said: str
) -> None:
    code, out, err = bench(*words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert said in err
    assert not stub.bodies


def test_bursts_of_the_asked_size(bench: Run, tmp_path: Path) -> None:
    burst = ("--request-distribution", "burst", "--burst-size", "3")
    assert bench(*burst, "--num-prompts-req-rates", "[(6,100)]")[0] == 0
    rows = [row.split(",") for row in (tmp_path / "sys-6-100.csv").read_text().splitlines()]
    planned = [float(row[rows[0].index("planned")]) for row in rows[1:]]
    gaps = [at - planned[0] for at in planned]
    assert gaps == pytest.approx([0, 0, 0, 0.03, 0.03, 0.03], abs=1e-5), "of an epoch's seconds"
    about = json.loads((tmp_path / "sys-6-100.run.json").read_text())
    assert about["parameters"]["burst_size"] == 3
    code, _, err = bench(*burst[:-1], "2", "--num-prompts-req-rates", "[(6,100)]")
    assert code == 2 and "another burst_size" in err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ((), list),
        (("--prompt-format", "tokens"), list),
        (("--prompt-format", "text"), str),
        (("--endpoint", "chat"), str),
        (("--endpoint", "chat", "--prompt-format", "text"), str),
    ],
    ids=str,
)
def test_lengths_without_texts_are_asked_for_everywhere(
    bench: Run, stub: Any, words: tuple[str, ...], kind: type
) -> None:
    assert bench(*words)[0] == 0
    for body in stub.bodies[1:]:
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        assert type(prompt) is kind
        assert len(prompt.split() if isinstance(prompt, str) else prompt) == 6


def test_a_made_up_word_is_about_a_token() -> None:
    from distserve.bench.prompts import prompts_of
    from distserve.workload import RequestSet

    tiny = Path(distserve.models.__file__).parent / "tiny" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tiny))
    lengths = [10, 100, 1000]
    for text, asked in zip(
        prompts_of(RequestSet(lengths, [1] * 3), "text", range(10), "0"), lengths, strict=True
    ):
        assert isinstance(text, str)
        # The first word has no space before it, which costs a token or two.
        assert 0 <= len(tokenizer.encode(text).ids) - asked <= 3
