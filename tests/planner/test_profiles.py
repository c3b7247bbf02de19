"""Which step times a plan can be made of: those by which every step takes time."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.planner.errors import InvalidProfile
from distserve.planner.models import KNOWN_MODELS, find_model
from distserve.planner.profiles import HardwareProfile, load_profile, parse_profile
from distserve.strategies.time_model import Coefficients, TimeModel

MODEL = find_model("13b")
ENTRY = {
    "prefill": [18.0, 0.1, 7e-6],
    "decoding_smallbs": [19.0, 6e-4, 0.04],
    "decoding_largebs": [7.0, 6e-4, 0.16],
}


def profile(**changes: Any) -> HardwareProfile:
    """Of one model, read from JSON, as a user has it."""
    return parse_profile(json.dumps({MODEL.name: {"1": ENTRY | changes}}), "mine.json")


@pytest.mark.parametrize("engine", ["distserve", "vllm"])
def test_every_shipped_profile_can_be_planned_with(engine: str) -> None:
    """Also vLLM's of OPT-66B at TP 2, whose prefill has a square term below 0."""
    shipped = load_profile(engine=engine)
    assert shipped.entries
    for name, tp in shipped.entries:
        assert shipped.times(KNOWN_MODELS[name], tp) == shipped.entries[name, tp]


@pytest.mark.parametrize("formula", ENTRY)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -100.0])
def test_what_is_no_time_is_one_line_with_the_formula_s_name(
    formula: str, place: int, value: float
) -> None:
    coefficients = list(ENTRY[formula])
    coefficients[place] = value
    with pytest.raises(InvalidProfile, match=rf"^mine\.json: by `{formula}` of .* TP 1 .*$"):
        profile(**{formula: coefficients})


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({"prefill": [-0.05, 0.1, 7e-6]}, True),
        ({"prefill": [-0.2, 0.1, 7e-6]}, False),  # a prompt of one token
        ({"prefill": [18.0, 0.1, -2e-5]}, True),
        ({"prefill": [18.0, 0.1, -3e-5]}, False),  # the last tokens of 2048
        ({"prefill": [0.0, 0.0, 0.0]}, False),
        ({"decoding_smallbs": [19.0, 6e-4, -0.1]}, True),  # at 94 requests 9.7 ms
        ({"decoding_smallbs": [19.0, 6e-4, -0.3]}, False),
        ({"decoding_largebs": [-5.0, 6e-4, 0.16]}, True),  # at 95 requests 10.3 ms
        ({"decoding_largebs": [-5.0, 6e-4, 0.01]}, False),
        ({"decoding_largebs": [-5.0, 0, 0.16], "decoding_large_small_bs_threshold": 9}, False),
        ({"decoding_largebs": [9.0, 6e-4, -0.01]}, False),  # of any number of requests
        ({"decoding_largerbs": {"128": [1.0, 6e-4, 0.1]}}, True),
        ({"decoding_largerbs": {"128": [9.0, 6e-4, -0.01]}}, False),
        ({"decoding_largerbs": {"128": [-20.0, 6e-4, 0.15]}}, False),  # at 128 requests
        # At 127 requests 6.2 ms: it need not hold beyond them.
        (
            {"decoding_largebs": [19.0, 0, -0.1], "decoding_largerbs": {"128": [9, 0, 0.1]}},
            True,
        ),
    ],
)
def test_a_coefficient_below_zero_is_judged_by_the_steps(
    changes: dict[str, Any], possible: bool
) -> None:
    if possible:
        assert profile(**changes).times(MODEL, 1)
    else:
        with pytest.raises(InvalidProfile, match="takes no time, or less for more tokens"):
            profile(**changes).times(MODEL, 1)


def test_how_long_prompts_get_is_the_model_s() -> None:
    falling = profile(prefill=[18.0, 0.1, -2e-5])
    assert falling.times(MODEL, 1)
    with pytest.raises(InvalidProfile):
        falling.times(replace(MODEL, max_positions=4096), 1)


@pytest.mark.parametrize(
    "accelerator",
    [{"memory_bytes": math.nan}, {"kv_budget_bytes": math.inf}, {"kv_budget_bytes": -1}],
)
def test_memory_is_a_number_above_zero(accelerator: dict[str, float]) -> None:
    with pytest.raises(InvalidProfile, match=r"not a hardware profile: .*above 0"):
        parse_profile(json.dumps({"accelerator": accelerator}), "mine.json")


def test_further_formulas_hold_from_their_borders_on() -> None:
    larger = {"256": [2.0, 0, 0.3], "128": [1.0, 0, 0.2]}
    times = profile(decoding_largerbs=larger).times(MODEL, 1)
    expected = {94: 19.0, 95: 7.0, 127: 7.0, 128: 1.0, 255: 1.0, 256: 2.0, 1000: 2.0}
    assert {size: times.decode(size).a for size in expected} == expected
    with pytest.raises(InvalidProfile, match="decoding_largerbs begins at 95, not above 95"):
        profile(decoding_largerbs={"95": [1.0, 0, 0.2]})


def test_a_border_without_end_is_none() -> None:
    with pytest.raises(InvalidProfile, match="not a hardware profile"):
        profile(decoding_large_small_bs_threshold=math.inf)


coefficients = st.builds(
    Coefficients,
    st.floats(-20, 40),
    st.floats(-0.001, 0.1),
    st.floats(-1e-4, 1e-4) | st.floats(-0.2, 0.4),
)
prompts = st.lists(st.tuples(st.integers(0, 2047), st.integers(1, 2048)), max_size=8)


further = st.none() | st.tuples(st.integers(1, 200), coefficients)


@given(coefficients, coefficients, coefficients, st.integers(0, 200), further, prompts, st.data())
def test_by_what_is_taken_every_step_takes_time(
    prefill: Coefficients,
    small: Coefficients,
    large: Coefficients,
    border: int,
    further: tuple[int, Coefficients] | None,
    prompts: list[tuple[int, int]],
    data: st.DataObject,
) -> None:
    """Pieces of prompts, from a token to their end, beside any batch."""
    larger = () if further is None else ((max(1, border) + further[0], further[1]),)
    model = TimeModel(prefill, small, large, border, larger)
    try:
        times = HardwareProfile("mine", {(MODEL.name, 1): model}).times(MODEL, 1)
    except InvalidProfile:
        return
    pieces = [(begin, min(2048, begin + length)) for begin, length in prompts]
    tokens = sum(end - begin for begin, end in pieces)
    squared = sum(end**2 - begin**2 for begin, end in pieces)
    batch = data.draw(st.integers(0 if pieces else 1, 1000))
    context = data.draw(st.integers(batch, 2048 * batch))
    assert times.mixed_ms(tokens, squared, batch, context) > -1e-12, "but for rounding"
    longer = data.draw(st.integers(context, 2048 * batch))
    assert batch == 0 or times.decode_ms(batch, longer) >= times.decode_ms(batch, context)
