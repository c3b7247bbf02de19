"""Request sets and arrivals: files that users have, and draws equal to the reference's."""

import gzip
import itertools
import json
import marshal
import random
import statistics

import pytest

from distserve.workload import ArrivalProcess, RequestSet, WorkloadError, read_requests
from distserve.workload.lengths import from_summary, lognormal


def test_requests_are_drawn_as_the_reference_draws_them():
    rows = RequestSet(range(1, 20_001), [1] * 20_000)
    drawn = rows.sample(300, 0)
    expected = [12623, 13781, 1326, 8484, 16753, 15922, 13268, 9938, 15617, 11732]
    assert [prompt - 1 for prompt in drawn.prompt_tokens[:10]] == expected


@pytest.mark.parametrize(
    ("cv", "expected"),
    [
        (1.0, [0.79587450816311, 1.2559307629658378, 0.9232231458040688, 0.7872011523172707]),
        (2.0, [0.09071918829878774, 0.13200410192278483, 0.032214286927961876]),
    ],
)
def test_standard_gaps_are_the_reference_s(cv, expected):
    rate = 7.0
    times = ArrivalProcess("gamma", cv).times_ms(300, rate)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    scale_ms = cv * cv / rate * 1000
    assert times[0] == 0
    assert [gap / scale_ms for gap in gaps[: len(expected)]] == pytest.approx(expected, rel=1e-9)


def test_rates_share_their_randomness():
    arrivals = ArrivalProcess("poisson", seed=3)
    slow, fast = arrivals.times_ms(50, 1.0), arrivals.times_ms(50, 4.0)
    assert slow == pytest.approx([4 * time for time in fast])


def test_fixed_burst_and_infinite_rates():
    assert ArrivalProcess("fixed").times_ms(3, 4.0) == [0, 250, 500]
    assert ArrivalProcess("uniform").times_ms(3, 4.0) == [0, 250, 500]
    assert ArrivalProcess("burst", burst_size=2).times_ms(5, 4.0) == [0, 0, 500, 500, 1000]
    assert ArrivalProcess("poisson").times_ms(3, float("inf")) == [0, 0, 0]


def test_recorded_keeps_order_and_times_from_the_first():
    requests = RequestSet([5, 6], [1, 2], [1000.0, 1500.0])
    trace = ArrivalProcess("custom").trace(requests, 99.0)
    assert (list(trace.arrival_ms), list(trace.prompt_tokens)) == ([0, 500], [5, 6])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"prompt_len,output_len,arrival_ms\n7,2,0\n9,3,250\n"),
        ("a.csv", b"num_prefill_tokens,num_decode_tokens,arrived_at\n7,2,0\n9,3,0.25\n"),
        (
            "a.jsonl",
            b'{"timestamp": 0, "input_length": 7, "output_length": 2}\n'
            b'{"timestamp": 250, "input_length": 9, "output_length": 3}\n',
        ),
        (
            "a.json",
            json.dumps(
                [
                    {"start_time": 0, "prompt_len": 7, "output_len": 2},
                    {"start_time": 0.25, "prompt_len": 9, "output_len": 3},
                ]
            ).encode(),
        ),
    ],
)
def test_layouts_of_request_files(tmp_path, name, content, packed):
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    requests = read_requests(path)
    assert list(requests.prompt_tokens) == [7, 9]
    assert list(requests.output_tokens) == [2, 3]
    assert requests.arrival_ms == [0, 250]


@pytest.mark.parametrize("key", ["reqs", "data"])
def test_ds_files_with_either_key(tmp_path, key):
    path = tmp_path / "sharegpt.ds"
    path.write_bytes(marshal.dumps({"dataset_name": "x", key: [("hi", 7, 2), ("ho", 9, 3)]}))
    requests = read_requests(path)
    assert (list(requests.prompt_tokens), list(requests.output_tokens)) == ([7, 9], [2, 3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lacks the columns prompt_len,output_len"),
        ("prompt_len,output_len\n", "holds no requests"),
        ("a,b\n1,2\n", r"lacks the columns .*found: "),
        ("prompt_len,output_len\n1,two\n", "line 2"),
        ("prompt_len,output_len\n5\n", "line 2"),
        ("prompt_len,output_len\n5,0\n", "lengths must be from 1 to"),
    ],
)
def test_unusable_files_say_what_to_change(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(WorkloadError, match=message):
        read_requests(path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.ds", b"junk"), ("a.json", b"{"), ("a.csv.gz", b"\x1f\x8b oops")]
)
def test_damaged_files_are_no_traceback(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkloadError):
        read_requests(tmp_path / name)


def test_mistakes_in_the_question_are_named():
    requests = RequestSet([5, 6], [1, 2])
    with pytest.raises(WorkloadError, match="ask for at most 2"):
        requests.sample(3, 0)
    with pytest.raises(WorkloadError, match="no arrival times"):
        requests.recorded()
    with pytest.raises(WorkloadError, match="sort the trace"):
        RequestSet([5, 6], [1, 2], [10.0, 5.0]).recorded()
    with pytest.raises(WorkloadError, match="unknown arrival process"):
        ArrivalProcess("sometimes")
    with pytest.raises(WorkloadError, match="rate must be above 0"):
        ArrivalProcess().trace(requests, 0)


def test_a_summary_becomes_lengths_with_its_mean_and_percentile():
    requests = from_summary((755, 1608), (200, 447), limit_tokens=1 << 20, count=20_000)
    for lengths, mean, p90 in (
        (requests.prompt_tokens, 755, 1608),
        (requests.output_tokens, 200, 447),
    ):
        assert statistics.fmean(lengths) == pytest.approx(mean, rel=0.03)
        assert statistics.quantiles(lengths, n=10)[-1] == pytest.approx(p90, rel=0.03)


def test_a_summary_that_no_distribution_has():
    with pytest.raises(WorkloadError, match="p90 must be between"):
        lognormal(100, 500)
    with pytest.raises(WorkloadError, match="hardly any request"):
        from_summary((755, 1608), (200, 447), limit_tokens=3, count=10)


def test_lengths_that_no_model_holds_are_given_up_soon(monkeypatch):
    draw, draws = random.Random.lognormvariate, itertools.count()

    def counted(self, mu, sigma):
        next(draws)
        return draw(self, mu, sigma)

    monkeypatch.setattr(random.Random, "lognormvariate", counted)
    with pytest.raises(WorkloadError, match="lower the lengths or raise maxModelLen"):
        from_summary((755, 1608), (200, 447), limit_tokens=3, count=5000)
    assert next(draws) < 10_000
    few = from_summary((755, 1608), (200, 447), limit_tokens=150, count=200)
    assert len(few) == 200 and next(draws) > 10_000, "two in a hundred fit: it takes its time"
