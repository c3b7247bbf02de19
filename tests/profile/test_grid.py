"""Which batches a grid has, and which of them an engine takes."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.profile.errors import ProfileError
from distserve.profile.grid import Bounds, Point, parse_grid, refuse_too_few, within
from distserve.profile.progress import Progress

numbers = st.lists(st.integers(1, 5000), min_size=1, max_size=8)


def test_the_paper_s_grid_is_the_paper_s() -> None:
    """DistServe's profiler: 11 batch sizes, 16 lengths."""
    points = parse_grid("paper")
    assert len(points) == 11 * 16
    assert Point(192, 2020) in points and Point(1, 4) == points[0]
    assert set(parse_grid("quick")) >= {Point(1, 16), Point(32, 1024)}


@given(numbers, numbers)
def test_a_user_s_grid_holds_each_pair_once(batches: list[int], lengths: list[int]) -> None:
    text = f"{','.join(map(str, batches))}:{','.join(map(str, lengths))}"
    points = parse_grid(text)
    assert sorted(points) == sorted({Point(b, n) for b in batches for n in lengths})
    assert [p.tokens for p in points] == sorted(p.tokens for p in points)


@given(st.text())
def test_any_other_text_is_refused_with_the_forms(text: str) -> None:
    try:
        assert parse_grid(text)
    except ProfileError as error:
        assert "BATCHES:LENGTHS" in str(error)


def test_what_the_engine_does_not_hold_is_left_out() -> None:
    bounds = Bounds(sequences=4, step_tokens=64, model_tokens=100, blocks=20, block_tokens=16)
    points = [Point(4, 16), Point(8, 16), Point(1, 100), Point(4, 60), Point(1, 80)]
    assert within(points, bounds, output_tokens=8) == [Point(4, 16), Point(1, 80)]
    assert bounds.prefills_at_once(Point(4, 16)) and not bounds.prefills_at_once(Point(1, 80))
    with pytest.raises(ProfileError, match="raise --kv-cache"):
        within([Point(8, 16)], bounds, 8)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([Point(1, 8), Point(2, 8)], "2 batches are too few to fit, 3 are needed; give a larger"),
        (
            [Point(1, 8), Point(2, 8), Point(1, 80), Point(2, 40)],
            "of 4 batches 2 are prefilled in one step, 3 are needed .* --max-num-batched-tokens",
        ),
    ],
)
def test_what_no_fit_can_be_made_of_is_refused(points: list[Point], said: str) -> None:
    bounds = Bounds(sequences=4, step_tokens=64, model_tokens=100, blocks=20, block_tokens=16)
    with pytest.raises(ProfileError, match=said):
        refuse_too_few(points, bounds)
    refuse_too_few([*points, Point(1, 16)], bounds)
    recorded = Point(1, 96)  # in more steps than now, or in one that was larger
    refuse_too_few(points, bounds, {recorded: True})
    with pytest.raises(ProfileError, match="prefilled in one step"):
        refuse_too_few(points, bounds, {recorded: False})
    with pytest.raises(ProfileError, match=said):
        refuse_too_few(points, bounds, {points[0]: True})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_time_left_is_what_is_left_of_the_work() -> None:
    now = [0.0]
    visits = [(Point(1, 100), 0), (Point(1, 100 + 1), 0), (Point(1, 100), 1), (Point(1, 101), 1)]
    terminal = Terminal()
    progress = Progress(visits, 2, terminal, clock=lambda: now[0])
    progress.begin(visits[0])
    assert progress.seconds_left() is None
    progress.ended(visits[0])
    now[0] = 10.0
    progress.begin(visits[1])
    left = progress.seconds_left()
    assert left is not None and 20 < left < 40  # one like it, and one of twice the tokens
    assert "3/6, now round 1: 1 x 101 tokens" in terminal.getvalue()
    silent = io.StringIO()
    Progress(visits, 0, silent).begin(visits[0])
    assert silent.getvalue() == ""
