"""Data sets by the papers' rules, from small raw files; synthetic ones by their stated lengths."""

import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from distserve.bench.datasets import load
from distserve.bench.datasets.tokens import Tokens
from distserve.bench.errors import BenchError
from distserve.bench.progress import Counting
from distserve.bench.synthetic import NAMED
from distserve.cli.main import main
from distserve.workload import RequestSet, read_requests

Make = Callable[..., RequestSet]
Terminal = Callable[[], AbstractContextManager[Callable[[], None]]]
NoRoom = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A token a word; `w0` to `w4999` decode to themselves."""
    words = {f"w{number}": number for number in range(5000)} | {"?": 5000}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def make(tmp_path: Path, tokenizer: Path) -> Make:
    def one(name: str, raw: Any, *words: str, lines: bool = True) -> RequestSet:
        source = tmp_path / ("raw.jsonl" if lines else "raw.json")
        source.write_text("\n".join(map(json.dumps, raw)) if lines else json.dumps(raw))
        ds = tmp_path / f"{name}.ds"
        asked = ["bench", "prepare", name, str(source), "--tokenizer", str(tokenizer)]
        assert main([*asked, "--ds", str(ds), *words]) == 0
        return read_requests(ds)

    return one


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


def lengths(requests: RequestSet) -> list[tuple[int, int]]:
    return list(zip(requests.prompt_tokens, requests.output_tokens, strict=True))


def test_sharegpt(make: Make) -> None:
    def conversation(*turns: int) -> dict[str, Any]:
        return {"conversations": [{"from": "x", "value": words(turn)} for turn in turns]}

    raw = [
        conversation(10, 20),  # two turns: none
        conversation(10, 20, 30, 40),
        conversation(1, 2, 3),  # both too short, whichever turn is drawn
        conversation(2000, 2000, 2000),  # too long
        conversation(10, 20, 30, 40),
    ]
    requests = make("sharegpt", raw, lines=False)
    # The generator of seed 0 draws a turn for each conversation that is long enough.
    draw = random.Random(0)
    drawn = [draw.randint(1, last) for last in (3, 2, 2, 3)]
    possible = {1: (10, 20), 2: (30, 30), 3: (60, 40)}
    assert lengths(requests) == [possible[drawn[0]], possible[drawn[3]]]
    assert requests.prompts is not None
    assert requests.prompts[0].startswith(words(10))


def test_a_short_answer_is_in_distserve_s_sharegpt_and_not_in_loongserve_s(make: Make) -> None:
    raw = [{"conversations": [{"value": words(n)} for n in row]} for row in ([10, 2, 2], [9] * 3)]
    short, whole = lengths(make("sharegpt", raw, lines=False))
    assert short in {(10, 2), (12, 2)} and whole in {(9, 9), (18, 9)}
    assert lengths(make("sharegpt-loongserve", raw, lines=False)) == [whole]


def test_loongserve_s_sharegpt_has_short_answers_and_long_prompts(make: Make) -> None:
    turns = [[3000, 900, 900], [10, 1500, 1500]]
    raw = [{"conversations": [{"value": words(n)} for n in row]} for row in turns]
    (found,) = lengths(make("sharegpt-loongserve", raw, lines=False))
    assert found in {(3000, 900), (3900, 900)}


def test_humaneval_is_there_ten_times(make: Make) -> None:
    raw = [{"prompt": words(n), "canonical_solution": words(n + 1)} for n in (5, 7)]
    assert lengths(make("humaneval", raw)) == [(5, 6), (7, 8)] * 10


def test_longbench_is_cut(make: Make) -> None:
    raw = [
        {"context": words(4000), "answers": [words(40), "x"]},
        {"context": words(300), "answers": [words(5)]},
        {"context": words(4000), "answers": [words(1500)]},
    ]
    long, short, longer = lengths(make("longbench", raw))
    assert 1900 <= long[0] <= 2000 and long[1] == 40
    assert short == (300, 5)
    assert longer == (540, 1500)


def test_l_eval_and_lv_eval(make: Make) -> None:
    raw: list[dict[str, Any]] = [
        {"input": words(50), "instructions": ["w1 w2", "w3"], "outputs": [words(6), words(7)]}
    ]
    assert lengths(make("l-eval", raw)) == [(52, 6), (51, 7)]
    raw = [{"context": words(50) + " ", "input": "w1 w2", "answers": ["w1", "w2 w3"]}]
    assert lengths(make("lv-eval", raw)) == [(52, 3)]


def test_a_terminal_that_goes_away_is_no_fault_of_the_file(
    make: Make, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(Counting):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            leave()

    monkeypatch.setattr("distserve.bench.datasets.prepare.Counting", Watched)
    with terminal() as leave:
        assert len(make("cnn", [{"article": words(80), "highlights": words(9)}])) == 1


def test_alpaca_and_cnn(make: Make) -> None:
    raw = [
        {"instruction": words(5) + "\n", "input": words(3), "output": words(9)},
        {"instruction": words(5), "input": "", "output": words(2)},
        {"instruction": words(3), "output": words(3)},  # both too short
        {"instruction": words(1025), "input": "", "output": words(9)},
        {"instruction": words(1024), "input": "", "output": words(1025)},
        {"instruction": words(1024), "input": "", "output": words(1024)},
        {"instruction": "w1 w2", "input": " w3", "output": words(5)},
    ]
    requests = make("alpaca", raw, lines=False)
    assert lengths(requests) == [(8, 9), (5, 2), (1024, 1024), (3, 5)]
    assert requests.prompts is not None and requests.prompts[-1] == "w1 w2 w3"
    assert lengths(make("cnn", [{"article": words(80), "highlights": words(9)}])) == [(80, 9)]


def test_no_more_is_counted_than_is_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = Tokens.count

    def noted(self: Tokens, text: str, special: bool = True) -> int:
        counted.append(text)
        return count(self, text, special)

    monkeypatch.setattr(Tokens, "count", noted)
    raw = [{"article": words(n), "highlights": words(9)} for n in range(1, 1001)]
    assert lengths(make("cnn", raw, "--count", "2")) == [(1, 9), (2, 9)]
    assert len(counted) == 4


def test_it_is_shown_how_many_there_are_so_far(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = [{"article": words(n), "highlights": words(9)} for n in range(1, 5)]
    make("cnn", raw)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make("cnn", raw)
    assert "cnn: 1 requests" in capsys.readouterr().err


def test_mixes(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("humaneval", [{"prompt": words(n), "canonical_solution": words(9)} for n in (20, 15)])
    make("cnn", [{"article": words(n), "highlights": words(8)} for n in (100, 200, 1000)])
    sources = [str(tmp_path / "humaneval.ds"), str(tmp_path / "cnn.ds")]
    out = tmp_path / "out.ds"

    def mix(name: str, *more: str) -> RequestSet:
        assert main(["bench", "prepare", name, *sources, "--ds", str(out), *more]) == 0
        return read_requests(out)

    mixed = lengths(mix("mixed", "--count", "3"))
    assert sorted(mixed) == [(20, 9)] * 3 + [(100, 8), (200, 8), (1000, 8)]
    assert main(["bench", "prepare", "mixed", *sources, "--ds", str(out), "--count", "4"]) == 2
    assert "set 2 has 3 requests" in (told := capsys.readouterr().err)
    assert "not 4; give a longer file, or --count 3" in told
    zipf = mix("zipf", "--count", "500", "--alpha", "1.4")
    assert set(zipf.prompt_tokens) <= {15, 20, 100, 200, 1000}
    assert zipf.prompt_tokens.count(15) > zipf.prompt_tokens.count(1000)
    assert main(["bench", "prepare", "mixed", *sources, "--ds", str(out), "--tokenizer", "x"]) == 2
    assert "counted already; leave out --tokenizer" in capsys.readouterr().err
    flat = mix("zipf", "--count", "500", "--alpha", "1.4", "--beta", "100000")
    assert flat.prompt_tokens.count(15) < zipf.prompt_tokens.count(15)
    capsys.readouterr()
    for flag in ("--alpha", "--beta"):
        assert main(["bench", "prepare", "mixed", *sources, "--ds", str(out), flag, "1"]) == 2
        assert f"{flag} belongs to zipf" in capsys.readouterr().err
    assert main(["bench", "prepare", "adaserve", *sources, "--ds", str(out)]) == 2
    assert "3 sets are mixed" in capsys.readouterr().err
    sources.append(sources[1])
    adaserve = mix("adaserve", "--count", "400")
    assert set(adaserve.output_tokens) == {256}
    assert 0.5 < sum(n <= 20 for n in adaserve.prompt_tokens) / 400 < 0.7


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sharegpt", "{", "as it is published"),
        ("sharegpt", '[{"x": 1}]', "no field 'conversations'"),
        ("sharegpt", "[]", "keeps the rules"),
        ("cnn", '{"article": 3, "highlights": "a"}', "as it is published"),
        ("mixed", "x", "request set"),
    ],
)
def test_raw_files_of_another_make(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], name: str, content: str,
    said: str,
) -> None:  # fmt: skip
    raw = tmp_path / "raw.ds"
    raw.write_text(content)
    asked = ["bench", "prepare", name, str(raw), "--ds", str(tmp_path / "o.ds")]
    counted = [] if name == "mixed" else ["--tokenizer", str(tokenizer)]
    assert main([*asked, *counted]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_a_tokenizer_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["bench", "prepare", "cnn", "x", "--ds", str(tmp_path / "o.ds")]
    assert main(asked) == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert main([*asked, "--tokenizer", str(tmp_path)]) == 2
    assert "no tokenizer.json" in capsys.readouterr().err


def test_a_full_disk_takes_no_good_file_away(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_room: NoRoom
) -> None:
    make("cnn", [{"article": words(800), "highlights": words(9)}])
    ds = tmp_path / "cnn.ds"
    good = ds.read_bytes()
    mix = ["bench", "prepare", "mixed", str(ds), "--count", "1", "--ds", str(ds)]
    capsys.readouterr()
    with no_room():
        code = main(mix)
    err = capsys.readouterr().err
    assert code == 2 and len(err.splitlines()) == 1
    assert "cnn.ds cannot be written: File too large; make room, or give another --ds" in err
    assert ds.read_bytes() == good and not list(tmp_path.glob(".*.part"))
    assert main(mix) == 0 and ds.read_bytes() != good


def test_what_is_no_file_is_written_not_replaced(make: Make, tmp_path: Path) -> None:
    make("cnn", [{"article": words(20), "highlights": words(9)}])
    pipe, ds = tmp_path / "pipe", str(tmp_path / "cnn.ds")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mix = ["bench", "prepare", "mixed", ds, "--count", "1", "--ds"]
        assert main([*mix, str(pipe)]) == 0 and main([*mix, ds]) == 0
        assert os.read(reader, 1 << 16) == Path(ds).read_bytes()
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_an_open_pipe_has_no_other_name(make: Make, tmp_path: Path) -> None:
    """A shell's `>(...)`."""
    make("cnn", [{"article": words(20), "highlights": words(9)}])
    ds = tmp_path / "cnn.ds"
    reader, writer = os.pipe()
    try:
        mix = ["bench", "prepare", "mixed", str(ds), "--count", "1", "--ds"]
        assert main([*mix, f"/dev/fd/{writer}"]) == 0 and main([*mix, str(ds)]) == 0
        assert os.read(reader, 1 << 16) == ds.read_bytes()
    finally:
        os.close(reader)
        os.close(writer)


STATED = {  # mean prompts, and the longest together
    "sharegpt": (755.5, 2048),
    "humaneval": (171.3, 2048),
    "longbench": (1738.3, 2048),
    "l-eval": (1.5 * 9550.5, 500_000),
    "lv-eval": (1.5 * 102_380, 500_000),
    "alpaca": (18, 2048),
    "cnn": (776, 4096),
}


@pytest.mark.parametrize("name", NAMED)
def test_synthetic_sets_say_so_and_have_the_stated_means(name: str) -> None:
    made = load(f"synthetic:{name}", 4000, 0)
    assert made.name == f"synthetic:{name}"
    mean, longest = STATED[name]
    # What exceeds the limit is drawn anew, so the mean comes out a little below.
    assert 0.75 * mean < statistics.fmean(made.prompt_tokens) <= 1.03 * mean
    assert max(sum(pair) for pair in lengths(made)) <= longest


@pytest.mark.parametrize(
    ("name", "limit"),
    [("sharegpt", 900), ("zipf,alpha=1.2", 900), ("mixed", 20_000), ("adaserve", 900)],
)
def test_a_shorter_synthetic_set_is_the_beginning_of_a_longer_one(name: str, limit: int) -> None:
    for tokens in (None, limit):
        short, long = (lengths(load(f"synthetic:{name}", count, 3, tokens)) for count in (20, 300))
        assert short == long[:20] and len(long) == 300
    assert max(map(sum, long)) <= limit
    assert max(map(sum, lengths(load(f"synthetic:{name}", 300, 3)))) > limit


def test_a_file_s_long_requests_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt_len,output_len\n5,4\n50,4\n6,4\n")
    assert lengths(load(str(path), 99, 0, 10)) == [(5, 4), (6, 4)]


def test_mixtures_have_a_share_of_each() -> None:
    def share(name: str, above: int) -> float:
        return statistics.fmean(p > above for p in load(f"synthetic:{name}", 3000, 0).prompt_tokens)

    for above in (1000, 10_000, 100_000):
        parts = [share(name, above) for name in ("sharegpt", "l-eval", "lv-eval")]
        assert share("mixed", above) == pytest.approx(statistics.fmean(parts), abs=0.03)

    made = load("synthetic:adaserve,slo-tpot-ms=36/50/150", 3000, 0)
    assert set(made.output_tokens) == {256}
    of_class: dict[float | None, list[int]] = {36.0: [], 50.0: [], 150.0: []}
    for own, tokens in zip(made.objectives or [], made.prompt_tokens, strict=True):
        of_class[own.tpot_ms].append(tokens)
    for (share, mean), prompts in zip(
        [(0.6, 132), (0.2, 18), (0.2, 776)], of_class.values(), strict=True
    ):
        assert len(prompts) / 3000 == pytest.approx(share, abs=0.03)
        assert statistics.fmean(prompts) == pytest.approx(mean, rel=0.1)
    assert load("synthetic:adaserve", 3, 0).objectives is None
    coding = load("synthetic:adaserve,shares=1/0/0", 3000, 0)
    assert statistics.fmean(coding.prompt_tokens) == pytest.approx(132, rel=0.1)
    for wrong in ("shares=1/2", "shares=0/0/0", "shares=1/-1/1", "slo-tpot-ms=50"):
        with pytest.raises(BenchError, match="of coding, chat and summarisation"):
            load(f"synthetic:adaserve,{wrong}", 3, 0)


def test_synthetic_lengths_are_the_seed_s() -> None:
    one, same, other = (load("synthetic:zipf,alpha=1.2", 100, seed) for seed in (1, 1, 2))
    assert lengths(one) == lengths(same) != lengths(other)
    assert min(one.prompt_tokens) >= 10
    assert lengths(load("synthetic:fixed,prompt=5,output=2", 2, 0)) == [(5, 2)] * 2
    with pytest.raises(BenchError, match="prompt=755/1608"):
        load("synthetic:lognormal,prompt=5,output=3/4", 1, 0)
