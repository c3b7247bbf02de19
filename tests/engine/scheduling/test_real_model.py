"""The whole engine with a real (small, random) model: its tokens are transformers' own."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distserve.api.strategies import Role, StrategySpec
from distserve.engine.assemble import Instance, assemble
from distserve.engine.commands import FromMigrator, MigratorUp, StartLeg
from distserve.engine.engine import Engine
from distserve.engine.errors import ModelError, PoolMemoryError
from distserve.engine.outbox import Output
from distserve.engine.pool import KvPool
from distserve.engine.settings import Settings
from distserve.wire import messages as wire
from distserve.wire.dialect import Leg, LegEvent, Phases, Source, Token
from distserve.wire.pool import NONCE_BYTES

VOCABULARY = 512
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from distserve.models.random_weights import make_random_model

    made = tmp_path_factory.mktemp("llama")
    make_random_model(
        made, "llama", hidden_size=32, layers=2, heads=4, kv_heads=2, vocab_size=VOCABULARY,
        max_positions=256, seed=7,
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[Sequence[int], int], list[int]]:
    """Greedy float64 continuations by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def generate(prompt: Sequence[int], tokens: int = TOKENS) -> list[int]:
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        found: list[int] = output[0, len(prompt) :].tolist()
        return found

    return generate


class Driven:
    """An engine that a test steps."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.events: dict[str, list[LegEvent]] = {}
        self.sent: list[wire.EngineMessage] = []
        self.engine = Engine(instance.parts, self._deliver)

    def _deliver(self, output: Output) -> None:
        for leg, event in output.events:
            self.events.setdefault(leg, []).append(event)
        self.sent += output.messages

    def start(self, leg: Leg) -> Leg:
        self.engine.handle(StartLeg(leg, self.instance.parts.clock()))
        return leg

    def run(self) -> None:
        while self.engine.step():
            pass
        self.engine.flush()
        self.engine.check_integrity()

    def hear(self, message: wire.MigratorMessage) -> None:
        self.engine.handle(FromMigrator(message))

    def tokens(self, leg: Leg, choice: int = 0) -> list[int]:
        events = self.events.get(leg.id, [])
        return [e.id for e in events if isinstance(e, Token) and e.choice == choice]


@pytest.fixture
def make_driven(folder: Path) -> Iterator[Callable[..., Driven]]:
    made: list[Driven] = []

    def make(strategy: str = "Colocated", **fields: Any) -> Driven:
        settings = Settings(
            model=folder, served_name="m", role=Role.HYBRID,
            strategy=StrategySpec.model_validate({"name": strategy}), instance="i", revision="r",
            host="127.0.0.1", port=0, migrator_socket=None, key=b"k" * 32, dtype="float64",
            kv_cache_bytes=1 << 20, max_num_seqs=16,
        )  # fmt: skip
        made.append(Driven(assemble(replace(settings, **fields))))
        return made[-1]

    yield make
    for driven in made:
        driven.engine.check_integrity()
        assert driven.instance.parts.blocks.available == driven.instance.parts.blocks.total
        driven.instance.pool.close()


def prompts(draw: Any) -> list[list[int]]:
    """Lengths 1 to 90, some with a common head."""
    head = [draw.randrange(10, VOCABULARY) for _ in range(40)]
    tails = [[draw.randrange(10, VOCABULARY) for _ in range(draw.randint(1, 50))] for _ in range(9)]
    return [head + tail if i % 3 == 0 else tail for i, tail in enumerate(tails)]


def test_an_instance_says_where_it_belongs(make_driven: Any) -> None:
    """What gateways route by, and no other place tells them."""
    info = make_driven(unit="u3", domain="leaf-7").instance.info
    assert (info.instance, info.role) == ("i", "hybrid")
    assert (info.unit, info.revision, info.domain) == ("u3", "r", "leaf-7")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"version": "1.0", "model'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_told_before_weights_are_loaded(
    make_driven: Any,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "chat_template.jinja").unlink()
    (broken / name).write_bytes(content)
    monkeypatch.setattr("distserve.engine.assemble.load_model", lambda *_: pytest.fail("loads"))
    with pytest.raises(ModelError, match=rf"/{name} .*: copy the model anew$") as error:
        make_driven(model=broken)
    assert "\n" not in str(error.value)


def test_memory_is_asked_for_all_rows_that_a_step_computes(
    make_driven: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = KvPool.create, []

    def watched(layout: Any, *, step_bytes: int) -> KvPool:
        asked.append(step_bytes)
        return create(layout, step_bytes=step_bytes)

    monkeypatch.setattr(KvPool, "create", watched)
    for tokens in (33, 34):
        make_driven(dtype="bfloat16", max_num_batched_tokens=tokens)
    assert asked[0] == asked[1] > 0


def test_a_context_that_the_pool_does_not_hold_is_refused_where_it_was_asked_for(
    make_driven: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """256 positions are 16 blocks, and one to spare."""
    block_bytes = 2 * 2 * 16 * 2 * 8 * 8  # layers, k|v, tokens, KV heads, head dim, float64
    fits, short = (blocks * block_bytes + NONCE_BYTES for blocks in (17, 16))
    assert make_driven(kv_cache_bytes=fits, max_model_len=256).instance.info.max_model_len == 256
    with pytest.raises(ModelError, match=r"over the 240 tokens .* raise kvCache to 1Mi"):
        make_driven(kv_cache_bytes=short, max_model_len=256)
    caplog.set_level("INFO", "distserve.engine.assemble")
    assert make_driven(kv_cache_bytes=fits).instance.info.max_model_len == 256
    assert not caplog.messages
    assert make_driven(kv_cache_bytes=short).instance.info.max_model_len == 240
    (said,) = caplog.messages
    assert said.startswith("contexts end at 240 tokens")
    assert said.endswith("kvCache of 1Mi")


def test_the_longest_step_has_its_memory_beside_the_pool(
    make_driven: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be killed for it later, under load; a pool's own tokens are the most of a step."""
    monkeypatch.setattr("distserve.engine.pool.available_bytes", lambda: (66 << 20) + 300_000)
    large = {"kv_cache_bytes": 2 << 20, "max_model_len": 64}
    assert make_driven(max_num_batched_tokens=64, **large)
    with pytest.raises(PoolMemoryError, match=r"memory: .*, or lower maxNumBatchedTokens"):
        make_driven(max_num_batched_tokens=8192, **large)
    assert make_driven(max_num_batched_tokens=8192, kv_cache_bytes=64 << 10)


@pytest.mark.parametrize("strategy", ["Colocated", "ChunkedPrefill"])
@pytest.mark.parametrize("batched_tokens", [512, 24])
def test_greedy_tokens_are_those_of_generate(
    make_driven: Any, make_leg: Any, expected: Any, rng: Any, strategy: str, batched_tokens: int
) -> None:
    driven = make_driven(strategy, max_num_batched_tokens=batched_tokens)
    asked = {"temperature": 0.0, "ignore_eos": True}
    wanted = prompts(rng)
    for _ in range(2):  # the second time with prefix hits
        legs = [driven.start(make_leg(p, TOKENS, sampling=asked)) for p in wanted]
        driven.run()
        assert [driven.tokens(leg) for leg in legs] == [expected(p) for p in wanted]
    four = driven.start(make_leg(wanted[0], TOKENS, sampling=asked, choices=[0, 1, 2, 3]))
    driven.run()
    assert [driven.tokens(four, c) for c in range(4)] == [expected(wanted[0])] * 4


def test_preempted_and_replayed_greedy_tokens_are_the_same(
    make_driven: Any, make_leg: Any, expected: Any, rng: Any
) -> None:
    block_bytes = 2 * 2 * 16 * 2 * 8 * 8  # layers, k|v, tokens, KV heads, head dim, float64
    driven = make_driven(kv_cache_bytes=16 * block_bytes + 4096)
    asked = {"temperature": 0.0, "ignore_eos": True}
    wanted = [p[:30] for p in prompts(rng)]
    legs = [driven.start(make_leg(p, 40, sampling=asked)) for p in wanted]
    driven.run()
    whole = [expected(p, 40) for p in wanted]
    assert [driven.tokens(leg) for leg in legs] == whole
    assert sum(driven.events[leg.id][-1].preemptions for leg in legs) > 0
    replay = driven.start(make_leg(wanted[1], 40, sampling=asked, prior=whole[1][:17]))
    driven.run()
    assert driven.tokens(replay) == whole[1][17:]


def test_seeded_sampling_is_the_same_migrated_colocated_and_replayed(
    make_driven: Any, make_leg: Any, rng: Any
) -> None:
    """Between two engines the KV is copied from pool to pool, as a migrator would."""
    source, target, whole = (make_driven("Disaggregated") for _ in range(3))
    asked = {
        "temperature": 1.0, "seed": 11, "ignore_eos": True, "frequency_penalty": 0.4,
        "repetition_penalty": 1.2, "top_p": 0.9,
    }  # fmt: skip
    for driven in (source, target):
        driven.engine.handle(MigratorUp("h:1"))
    for number, prompt in enumerate(prompts(rng)):
        local = whole.start(make_leg(prompt, TOKENS, sampling=asked))
        whole.run()
        name = f"t{number}"
        prefill = source.start(
            make_leg(prompt, TOKENS, sampling=asked, phases=Phases.PREFILL, transfer=name)
        )
        decode = target.start(
            make_leg(
                prompt, TOKENS, sampling=asked, phases=Phases.DECODE, source=Source(name, "h:1")
            )
        )
        source.run()
        source.hear(wire.Offered(name))
        target.run()
        migrate(source, target)
        target.run()
        source.run()
        assert source.tokens(prefill) + target.tokens(decode) == whole.tokens(local)
        text = _text(source, prefill) + _text(target, decode)
        assert text == _text(whole, local)
        replay = whole.start(
            make_leg(prompt, TOKENS, sampling=asked, prior=whole.tokens(local)[:5])
        )
        whole.run()
        assert whole.tokens(replay) == whole.tokens(local)[5:]


def _text(driven: Driven, leg: Leg) -> str:
    return "".join(getattr(event, "text", "") for event in driven.events[leg.id])


def migrate(source: Driven, target: Driven) -> None:
    (offer,) = [m for m in source.sent if isinstance(m, wire.Offer)]
    (commit,) = [m for m in source.sent if isinstance(m, wire.Commit)]
    (fetch,) = [m for m in target.sent if isinstance(m, wire.Fetch)]
    source.sent.clear()
    target.sent.clear()
    moved = 0
    for span in fetch.spans:
        first = span.tokens.start // target.instance.pool.layout.block_tokens
        theirs = offer.spans[0].blocks[first:]
        target.instance.pool.tensor[:, :, span.blocks] = source.instance.pool.tensor[:, :, theirs]
        moved += len(theirs)
    timings = wire.Timings("Copy", moved, 0.0, 0.0)
    target.hear(wire.Fetched(transfer=fetch.transfer, record=commit.record, timings=timings))
    source.hear(wire.Released(transfer=fetch.transfer, fetched=True))
