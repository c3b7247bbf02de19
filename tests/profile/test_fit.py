"""A fit finds the coefficients that are behind times, and says how far to believe it."""

import json
import random
import re
import resource
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from distserve.cli.main import main
from distserve.planner.errors import InvalidProfile
from distserve.planner.fitting import LARGE_BATCH, fit, fit_database, profile_text
from distserve.planner.models import find_model
from distserve.planner.profiles import load_profile
from distserve.planner.records import Origin, Record, ServingRecord
from distserve.planner.serving import Serving
from distserve.planner.serving_fit import fit_serving
from distserve.profile.database import Loaded, Measured, Subject, open_database
from distserve.strategies.time_model import Coefficients, TimeModel

TIMES = TimeModel(
    Coefficients(3.0, 0.05, 4e-5), Coefficients(2.5, 0.001, 0.09), Coefficients(1.0, 0.002, 0.2), 24
)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 64)
LENGTHS = (4, 32, 128, 512, 1024)


def records(times: TimeModel = TIMES, noise: Callable[[], float] = lambda: 1.0) -> list[Record]:
    return [
        Record(
            1, b, n,
            times.prefill_ms(b * n, b * n * n) * noise(),
            times.decode_ms(b, b * (n + 8)) * noise(),
            context_tokens=n + 8,
        )
        for b in BATCHES
        for n in LENGTHS
    ]  # fmt: skip


def test_known_coefficients_and_their_border_are_found() -> None:
    found = fit(records())
    assert found.times.large_batch == 24
    for mine, true in (
        (found.times.prefill, TIMES.prefill),
        (found.times.decode_small, TIMES.decode_small),
        (found.times.decode_large, TIMES.decode_large),
    ):
        assert mine == pytest.approx(true, rel=1e-4)
    for quality in (found.prefill, found.decode):
        assert quality.records == len(BATCHES) * len(LENGTHS)
        assert quality.seen.worst < 1e-5
        assert quality.held_out is not None and quality.held_out.worst < 1e-4


def test_kernels_that_change_their_way_twice_have_three_formulas(tmp_path: Path) -> None:
    """From 16 requests on a step is shorter than that of 12, as of one library's products."""
    true = TimeModel(
        TIMES.prefill, Coefficients(12, 0.004, 0.4), Coefficients(11, 0.003, 1.3), 4,
        ((16, Coefficients(18, 0.004, 0.5)),),
    )  # fmt: skip
    found = fit(records(true)).times
    assert (found.large_batch, [border for border, _ in found.decode_larger]) == (4, [16])
    for size in BATCHES:
        assert found.decode_ms(size, 100 * size) == pytest.approx(true.decode_ms(size, 100 * size))
    assert found.decode_ms(15, 1500) > found.decode_ms(16, 1600)
    told = tmp_path / "three.json"
    told.write_text(profile_text({("facebook/opt-13b", 1): fit(records(true))}))
    assert load_profile(str(told)).times(find_model("13b"), 1) == found
    assert fit(records(true), large_batch=8).times.decode_larger == (), "one border, as was asked"


def test_noise_makes_no_further_formulas() -> None:
    draw = random.Random(1)
    for _ in range(20):
        assert fit(records(noise=lambda: draw.gauss(1.0, 0.05))).times.decode_larger == ()


def test_without_a_border_there_is_one_decode_formula() -> None:
    found = fit(records(replace(TIMES, decode_large=TIMES.decode_small)))
    assert found.times.large_batch == LARGE_BATCH
    assert found.times.decode_large == found.times.decode_small
    assert fit(records(), large_batch=8).times.large_batch == 8


def test_noise_shows_in_the_errors_and_hardly_in_the_coefficients() -> None:
    draw = random.Random(1)
    found = fit(records(noise=lambda: draw.gauss(1.0, 0.05)))
    seen, held_out = found.prefill.seen, found.prefill.held_out
    assert held_out is not None
    assert 0.02 < seen.mean < 0.06 and seen.median <= seen.p90 <= seen.worst
    assert held_out.mean > seen.mean  # points that were not seen are predicted worse
    assert found.times.prefill.b == pytest.approx(TIMES.prefill.b, rel=0.05)


def test_no_coefficient_is_negative() -> None:
    """Times that fall with length: what is left is what least squares makes of a constant."""
    falling = [Record(1, b, n, 10 - n / 200, 10 - n / 200) for b in (1, 2, 4) for n in LENGTHS]
    found = fit(falling)
    assert min((*found.times.prefill, *found.times.decode_small)) >= 0
    assert found.times.decode_ms(1, 500) > 0


def test_what_was_not_measured_at_once_counts_for_the_other_phase() -> None:
    rows = [replace(r, prefill_ms=None) if r.input_tokens == 1024 else r for r in records()]
    found = fit(rows)
    assert found.prefill.records == len(BATCHES) * (len(LENGTHS) - 1)
    assert found.decode.records == len(BATCHES) * len(LENGTHS)
    with pytest.raises(InvalidProfile, match="2 records of prefill are too few"):
        fit([replace(r, prefill_ms=None) for r in rows[:9]] + records()[:2])


def served(
    streams: int, migrated: bool, serving: Serving, longest_tokens: int = 32
) -> ServingRecord:
    padding_tokens = streams * (longest_tokens - 32)
    step_ms = serving.applied(TIMES).decode_ms(streams, streams * 64)
    step_ms += serving.padding_ms * padding_tokens
    on_the_way_ms = serving.request_ms + streams * serving.prompt_ms
    ttft_ms = on_the_way_ms + serving.applied(TIMES).prefill_ms(32 * streams, 32**2 * streams)
    added_ms = serving.handover_ms + serving.joining_ms
    handover_ms = step_ms + (added_ms if migrated else 0.0)
    return ServingRecord(
        1, streams, 32, 64, ttft_ms, handover_ms, step_ms, migrated, longest_tokens
    )


@pytest.mark.parametrize("migrated", [True, False])
def test_what_an_idle_deployment_adds_is_what_its_clients_see_beyond_the_steps(
    migrated: bool,
) -> None:
    true = Serving(
        request_ms=7.0, handover_ms=5.0 * migrated, step_ms=0.4, stream_ms=0.1, padding_ms=0.002
    )
    rows = [served(n, migrated, true) for n in (1, 2, 4, 8, 16)]
    rows.append(served(8, migrated, true, longest_tokens=320))
    assert fit_serving(rows, TIMES).as_entry() == pytest.approx(true.as_entry())
    assert fit_serving([], TIMES) == Serving()


def test_nothing_that_is_added_is_below_zero() -> None:
    rows = [
        replace(served(n, True, Serving()), step_ms=1, ttft_ms=1, handover_ms=0) for n in (1, 8)
    ]
    assert fit_serving(rows, TIMES) == Serving()


def filled(path: Path, *subjects: Subject) -> Path:
    for subject in subjects:
        with open_database(path, subject) as database:
            for r in records():
                assert r.context_tokens is not None
                database.add(
                    Measured(
                        r.batch_size, r.input_tokens, 16, r.prefill_ms, r.decode_ms, 0.0, 0.0,
                        r.context_tokens, 3,
                    )
                )  # fmt: skip
    return path


def test_a_database_of_several_models_becomes_one_profile(tmp_path: Path) -> None:
    names = ("one", "two")
    path = filled(tmp_path / "p.sqlite", *(Subject(n, "float32", "cpu", "1") for n in names))
    fits = fit_database(path)
    assert set(fits) == {("one", 1), ("two", 1)}
    assert fits["one", 1].origin == Origin("one", "float32", "cpu", "1")
    assert set(fit_database(path, "two")) == {("two", 1)}
    (tmp_path / "mine.json").write_text(profile_text(fits))
    loaded = load_profile(str(tmp_path / "mine.json"))
    assert loaded.entries["two", 1] == fits["two", 1].times
    assert not loaded.serving_by_model


def test_times_of_two_devices_are_not_mixed(tmp_path: Path) -> None:
    path = filled(
        tmp_path / "p.sqlite", Subject("m", "float32", "fast", "1"),
        Subject("m", "float32", "slow", "1"),
    )  # fmt: skip
    with pytest.raises(InvalidProfile, match="several devices; choose one with --device: 'fast'"):
        fit_database(path)
    assert fit_database(path, wanted={"device": "slow"})["m", 1].origin.device == "slow"
    with pytest.raises(InvalidProfile, match="no records of model x; the database has: m float32"):
        fit_database(path, "x")


def foreign(path: Path, **models: TimeModel) -> Path:
    """As DistServe's profiler leaves it: a model is its tag, and all have one file."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE records (tp_world_size, batch_size, input_len, avg_prefill_time_usage, "
            "avg_decoding_time_usage, tag)"
        )
        database.executemany(
            "INSERT INTO records VALUES (1, ?, ?, ?, ?, ?)",
            [
                (r.batch_size, r.input_tokens, r.prefill_ms, r.decode_ms, tag)
                for tag, times in models.items()
                for r in records(times)
            ],
        )
        database.commit()
    return path


def test_models_that_only_a_tag_tells_apart_are_not_mixed(tmp_path: Path) -> None:
    slow = replace(TIMES, prefill=Coefficients(15.0, 0.25, 2e-4))
    path = foreign(tmp_path / "p.sqlite", small=TIMES, large=slow)
    with pytest.raises(InvalidProfile, match="several tags; choose one with --tag: 'large', 'sma"):
        fit_database(path, "opt-13b")
    fits = fit_database(path, "opt-13b", {"tag": "small"})
    assert set(fits) == {("opt-13b", 1)}
    assert fits["opt-13b", 1].times.prefill == pytest.approx(TIMES.prefill, rel=1e-4)
    with pytest.raises(InvalidProfile, match="no records of tag huge; the database has: large; sm"):
        fit_database(path, "opt-13b", {"tag": "huge"})
    alone = foreign(tmp_path / "alone.sqlite", large=slow)
    assert fit_database(alone, "opt-66b")["opt-66b", 1].prefill.seen.worst < 1e-5


def test_rows_of_other_parallelism_are_counted_where_they_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoongServe's profiler measures sequence parallelism, too."""
    path = foreign(tmp_path / "p.sqlite", x=TIMES)
    words = ["profile", "fit", "--db", str(path), "--model", "opt-13b", "--format", "json"]

    def fitted(*statements: str) -> tuple[int, str, str]:
        with closing(sqlite3.connect(path)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()
        code = main(words)
        return code, *capsys.readouterr()

    code, alone, said = fitted()
    assert (code, said) == (0, "")
    code, told, said = fitted(
        "ALTER TABLE records ADD COLUMN sp_world_size DEFAULT 1",
        "INSERT INTO records SELECT tp_world_size, batch_size, input_len, 1, 1, tag, 4 "
        "FROM records WHERE batch_size < 4",
    )
    assert (code, told) == (0, alone)
    assert said == (
        f"{path}: 10 of 50 rows are left out: their sp_world_size or pp_world_size is not 1, and "
        "times are fitted by tensor parallelism alone\n"
    )
    code, _, said = fitted("UPDATE records SET sp_world_size = 2")
    assert code == 2
    assert "50 of 50 rows are left out" in said and "holds no usable records" in said


def test_a_profile_of_another_profiler_says_what_memory_there_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plans would take an A100's 80 GiB of a card that has 24."""
    path, output = foreign(tmp_path / "p.sqlite", x=TIMES), tmp_path / "mine.json"
    words = ["profile", "fit", "--db", str(path), "--model", "facebook/opt-13b"]
    assert main([*words, "--output", str(output)]) == 2
    assert "give the accelerator's memory, as --memory 24Gi" in capsys.readouterr().err
    assert not output.exists()
    assert main([*words, "--output", str(output), "--memory", "24Gi"]) == 0
    profile = load_profile(str(output))
    assert profile.memory_bytes == 24 << 30
    assert profile.kv_budget_bytes == round(0.93 * (24 << 30))
    assert main(words) == 0, "without a profile no memory is asked for"
    for wrong, said in ((["--memory", "24Gi"], "no effect without --output"),
                        (["--output", str(output), "--memory", "much"], "is no quantity"),
                        (["--output", str(output), "--memory", "0"], "holds nothing")):  # fmt: skip
        capsys.readouterr()
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_where_there_is_no_room_the_earlier_profile_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = filled(tmp_path / "p.sqlite", Subject("m", "float32", "cpu", "1")), "mine.json"
    (tmp_path / output).write_text("the earlier one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        code = main(["profile", "fit", "--db", str(path), "--output", str(tmp_path / output)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "mine.json cannot be written: File too large" in capsys.readouterr().err
    assert (tmp_path / output).read_text() == "the earlier one"


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("batch_size", None, "row 2 of `records` is no measurement: batch_size is None"),
        ("input_len", "long", "input_len is 'long'"),
        ("batch_size", 0, "batch_size is 0"),
        ("avg_prefill_time_usage", "soon", "avg_prefill_time_usage is 'soon'"),
        ("avg_decoding_time_usage", float("inf"), "avg_decoding_time_usage is inf"),
    ],
    ids=str,
)
def test_a_row_that_is_no_measurement_is_named(
    tmp_path: Path, column: str, value: object, said: str
) -> None:
    path = foreign(tmp_path / "p.sqlite", x=TIMES)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE records SET {column} = ? WHERE rowid = 2", (value,))
        database.commit()
    with pytest.raises(InvalidProfile, match=f"{re.escape(said)}.*; delete it, or measure it anew"):
        fit_database(path, "m")


def test_a_profile_says_what_a_deployment_adds(tmp_path: Path) -> None:
    serving = Serving(request_ms=7.0, handover_ms=5.0, step_ms=0.4, stream_ms=0.1)
    found = replace(fit(records()), serving=serving)
    path = tmp_path / "mine.json"
    path.write_text(profile_text({("facebook/opt-13b", 1): found}))
    profile, model = load_profile(str(path)), find_model("13b")
    assert profile.serving(model, 1) == serving
    engine, deployed = profile.entries[model.name, 1], profile.times(model, 1)
    assert deployed.decode_ms(10, 500) == pytest.approx(engine.decode_ms(10, 500) + 0.4 + 10 * 0.1)
    assert deployed.prefill_ms(100, 100**2) == engine.prefill_ms(100, 100**2)
    entry = json.loads(path.read_text())
    entry["facebook/opt-13b"]["1"]["serving"]["speed"] = 1
    path.write_text(json.dumps(entry))
    with pytest.raises(InvalidProfile, match="not a hardware profile"):
        load_profile(str(path))


def test_loads_of_others_need_not_be_understood(tmp_path: Path) -> None:
    """Another release's, say: only those that belong to the steps are read."""
    mine, older = Subject("m", "float32", "cpu", "2"), Subject("m", "float32", "cpu", "1")
    path = filled(tmp_path / "p.sqlite", mine, older)
    with open_database(path, older) as database:
        database.replace_deployment([Loaded(1, 0, '[{"length": 3}]')])
    assert fit_database(path, wanted={"engine_version": "2"})["m", 1].origin.engine_version == "2"
    with pytest.raises(InvalidProfile, match="measure it again"):
        fit_database(path, wanted={"engine_version": "1"})


@pytest.mark.parametrize("name", ["p#1.sqlite", "p?mode=rw.sqlite", "p%41.sqlite", "a b.sqlite"])
def test_what_profile_wrote_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / name, Subject("m", "float32", "cpu", "1"))
    assert set(fit_database(path)) == {("m", 1)}
    assert [file.name for file in tmp_path.iterdir()] == [name]
