"""Prefill-first continuous batching: a step is a batch of whole prompts, else it is all decodes.

Source: vLLM's first scheduler and DistServe's context scheduler (FCFS, no skip over the head).
"""

from distserve.strategies.budget import Prompt, Room, fits


def grant_whole(prompt: Prompt, room: Room) -> int:
    """The whole prompt, or nothing; one that no step can take whole is cut when it is the head."""
    if not fits(prompt, room):
        return 0
    if prompt.tokens <= room.tokens:
        return prompt.tokens
    return room.tokens if room.untouched else 0
