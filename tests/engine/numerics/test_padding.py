"""Steps in half precision are padded to one of few sizes."""

import pytest
import torch

from distserve.engine.runner import padded

LONGEST = 8192


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sizes_are_few_and_a_sixteenth_more_at_most(dtype: torch.dtype) -> None:
    sizes = {rows: padded(rows, dtype) for rows in range(1, LONGEST + 1)}
    assert all(rows <= size <= rows * 17 / 16 for rows, size in sizes.items())
    assert len(set(sizes.values())) <= 200  # of each of a layer's widths; oneDNN keeps 1024
    assert sizes[LONGEST] == LONGEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_computed_as_it_is(dtype: torch.dtype) -> None:
    assert all(padded(rows, dtype) == rows for rows in range(1, 1000))
