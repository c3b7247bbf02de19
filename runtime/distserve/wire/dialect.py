"""The `distserve` Dialect: what gateway and engine say over HTTP (docs/protocol/dialect.md).

A *leg* is the part of a request that one instance runs. Bodies are JSON; answers to `POST /legs`,
`GET /state` and `GET /kv-events` are streams of JSON lines, each one of the tagged Structs below.
"""

from enum import StrEnum

from msgspec import Struct, field

from distserve.wire.messages import TokenLogprobs


class Phases(StrEnum):
    """Which part of a request a leg runs."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class Condition(StrEnum):
    """Tested by the engine against its own state before it takes a leg."""

    IDLE = "idle"
    STALL_FREE = "stallFree"


class Slo(Struct, frozen=True):
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a choice ends. Defaults are OpenAI's, except the seed, which
    the gateway always draws, so that a replay continues the same text."""

    seed: int
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop: list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    """None: no log-probabilities; k: the token's own and the k most likely ones."""
    prompt_logprobs: int | None = None


class Source(Struct, frozen=True):
    """Where a decode leg finds its KV."""

    transfer: str
    migrator: str
    """host:port"""


class Leg(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /legs`."""

    id: str
    """Unique for every attempt; abort names it."""
    request_id: str
    phases: Phases
    prompt: list[int]
    sampling: SamplingParams
    choices: list[int] = field(default_factory=lambda: [0])
    """Indices of the choices to produce; each has its own sampling noise."""
    prior: list[int] = []
    """Output tokens that the client already has (replay). Only with one choice."""
    transfer: str | None = None
    """prefill: id under which the KV is offered."""
    source: Source | None = None
    """decode: where the KV is."""
    salt: str = ""
    slo: Slo = Slo()
    only_if: Condition | None = None
    timeout_ms: float
    """What is left of the request's time when the leg is sent."""


class Lifecycle(Struct, frozen=True, omit_defaults=True):
    """DistServe's lifetime events, in ms since the leg was issued to this instance."""

    context_begin_ms: float | None = None
    context_end_ms: float | None = None
    migration_begin_ms: float | None = None
    migration_end_ms: float | None = None
    decoding_begin_ms: float | None = None
    decoding_end_ms: float | None = None


# ---- events of a leg ----------------------------------------------------------------------------


class Handoff(Struct, frozen=True, tag="handoff"):
    """The prefill is admitted and its blocks are offered: the decode leg can be opened."""

    source: Source


class PromptScores(Struct, frozen=True, tag="prompt"):
    """Log-probabilities of the prompt's tokens; the first has none."""

    logprobs: list[TokenLogprobs | None]


class Token(Struct, frozen=True, tag="token", omit_defaults=True):
    choice: int
    index: int
    """Place in the choice's output, 0 first. The same on every instance and after a replay."""
    id: int
    text: str
    """What can be shown after this token and could not before: empty while a character is
    incomplete or a stop string may have begun."""
    logprobs: TokenLogprobs | None = None


class Finish(Struct, frozen=True, tag="finish", omit_defaults=True):
    """A choice is complete."""

    choice: int
    reason: str
    """stop | length"""
    text: str = ""
    """Text that was held back until now."""
    stop: str | int | None = None
    """The stop string or token id that ended it; None for the model's own end token."""


class End(Struct, frozen=True, tag="end", omit_defaults=True):
    """Last event of a leg that went well."""

    lifecycle: Lifecycle
    cached_tokens: int = 0
    """Prompt tokens that came from this instance's prefix cache."""
    transport: str = ""
    transfer_bytes: int = 0
    preemptions: int = 0


class Declined(Struct, frozen=True, tag="declined"):
    """The leg's condition does not hold; nothing was started."""

    state: "InstanceState"


class LegError(Struct, frozen=True, tag="error", omit_defaults=True):
    """Last event of a leg that failed. `retryable`: another route or a replay may succeed."""

    message: str
    retryable: bool
    status: int = 500


LegEvent = Handoff | PromptScores | Token | Finish | End | Declined | LegError


# ---- abort, release -----------------------------------------------------------------------------


class AbortLeg(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /abort`: end the leg and let go of all it holds. Idempotent; an id that was
    never seen leaves a tombstone, so that an abort that overtakes its leg wins."""

    leg: str


class ReleaseTransfer(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /release`: nobody will fetch this transfer. Idempotent."""

    transfer: str


# ---- state, instance, cache events --------------------------------------------------------------


class RequestState(Struct, frozen=True, kw_only=True):
    leg: str
    phase: str
    """waiting | prefill | offered | expected | decode"""
    context_tokens: int
    """Of its longest choice, as tokens_out."""
    tokens_left: int
    """That it may still grow by here, all choices together. 0 for a prefill leg."""
    tokens_out: int
    seats: int = 1
    """Places in the batch that it has or waits for: one for each unfinished choice, 0 for an
    offer."""
    age_ms: float
    slo: Slo = Slo()


class InstanceState(Struct, frozen=True, kw_only=True, tag="state"):
    """A line of `GET /state`: sent on change, at most every 50 ms, at least every second."""

    epoch: int
    sequence: int
    free_blocks: int
    """Free or cached: what a new request can have."""
    total_blocks: int
    waiting: int
    running: int
    step_rest_ms: float = 0.0
    """Predicted rest of the running step."""
    draining: bool = False
    ready: bool = True
    """As `/readyz` has it. False: nothing new here now, for example while there is no migrator."""
    requests: list[RequestState] = []


class KvEvent(Struct, frozen=True, kw_only=True, tag="kv"):
    """A line of `GET /kv-events`: hex block hashes that entered or left the prefix cache. A gap in
    `sequence` or another epoch: forget the instance and reconnect. The first line has `reset`
    and all hashes."""

    epoch: int
    sequence: int
    reset: bool = False
    stored: list[str] = []
    removed: list[str] = []


class InstanceInfo(Struct, frozen=True, kw_only=True):
    """Answer of `GET /instance`."""

    instance: str
    role: str
    unit: str = ""
    revision: str = ""
    domain: str = ""
    """Of its fabric. What two instances of a route should share: unit, revision, domain."""
    epoch: int
    fingerprint: str
    model: str
    """Name that clients use."""
    strategy: str
    block_tokens: int
    total_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    chat_template: str | None
    files: dict[str, str]
    """Tokenizer files to be had at `GET /instance/files/{name}`: name -> sha256."""
    sampling_defaults: dict[str, float] = {}
    """From the model's generation config: used where the client gives none."""
    migrator: str = ""
    version: str = ""
    idle_seconds: float = 0.0
    """When it was asked: since its last leg or offer ended, or since it began to serve."""

    @property
    def tokenizer(self) -> str:
        """Equal where token ids mean the same. The other files say how a chat becomes a text."""
        return self.files.get("tokenizer.json", "")
