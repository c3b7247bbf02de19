"""Steps of a fixed number of tokens: running decodes take one each, pieces of prompts the rest.

Source: Sarathi-Serve, DeepSpeed's SplitFuse.
"""

from distserve.strategies.budget import Prompt, Room, fits

DEFAULT_CHUNK_TOKENS = 512


def step_tokens(chunk_tokens: int | None, max_tokens: int) -> int:
    """Size of a step. The option cannot raise the instance's own bound."""
    return min(DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens, max_tokens)


def grant_chunk(prompt: Prompt, room: Room) -> int:
    """As much of the prompt as the step still takes."""
    return min(prompt.tokens, room.tokens) if fits(prompt, room) else 0
