"""Builds an instance: the model in memory, its pool, and all that the engine is composed of.

Everything that can be wrong with a model, its folder or the machine's memory shows here, before the
process listens; the errors are `EngineError`s of one line.
"""

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec.structs import replace

from distserve.engine.blocks import BlockManager, Copy
from distserve.engine.choices import Choices
from distserve.engine.detokenizer import Detokenizer
from distserve.engine.errors import ModelError
from distserve.engine.fingerprint import fingerprint
from distserve.engine.loading import LoadedModel, load_model
from distserve.engine.metrics import EngineMetrics
from distserve.engine.parts import Parts
from distserve.engine.pool import TORCH_DTYPES, KvPool, layout_for
from distserve.engine.rank import Rank
from distserve.engine.runner import ModelRunner, padded
from distserve.engine.scheduler import Limits, Scheduler
from distserve.engine.settings import Settings
from distserve.engine.strategies import load_strategy
from distserve.engine.tokenizer_files import chat_template, digests
from distserve.wire.dialect import InstanceInfo
from distserve.wire.ids import new_epoch
from distserve.wire.messages import Hello
from distserve.wire.pool import PoolLayout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance:
    """A loaded instance, warmed up."""

    parts: Parts
    pool: KvPool
    info: InstanceInfo

    @property
    def hello(self) -> Hello:
        return Hello(
            instance=self.info.instance,
            epoch=self.info.epoch,
            fingerprint=self.info.fingerprint,
            pools=[self.pool.layout],
        )


@dataclass(frozen=True)
class _Texts:
    """What the folder says about text."""

    detokenizer: Detokenizer
    chat_template: str | None
    files: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "_Texts":
        """Raises ModelError."""
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise ModelError(f"{folder} has no tokenizer.json: give a folder with a tokenizer")
        return cls(Detokenizer.from_file(tokenizer), chat_template(folder), digests(folder))


def assemble(settings: Settings) -> Instance:
    """Raises EngineError."""
    texts = _Texts.of(settings.model)  # weights may take minutes, and are of no use without
    model = load_model(settings.model, settings.dtype)
    layout = layout_for(
        model.kv,
        Rank(),
        dtype=model.dtype,
        block_tokens=settings.block_tokens,
        budget_bytes=settings.kv_cache_bytes,
    )
    max_model_len = _max_model_len(settings, model, layout)
    step_tokens = min(settings.max_num_batched_tokens, layout.blocks * layout.block_tokens)
    rows = padded(step_tokens, TORCH_DTYPES[model.dtype])
    pool = KvPool.create(layout, step_bytes=model.body.step_bytes(rows))
    runner = ModelRunner(model, pool)
    most_tokens = min(settings.max_num_batched_tokens, max_model_len)
    token_ms = runner.warm_up(most_tokens, settings.max_num_seqs)
    blocks = BlockManager(layout.blocks, settings.block_tokens, caching=settings.prefix_caching)
    limits = Limits(settings.max_num_seqs, settings.max_num_batched_tokens)
    epoch = new_epoch()
    parts = Parts(
        runner=runner,
        copy_blocks=lambda copies: _copy_blocks(pool, copies),
        blocks=blocks,
        scheduler=Scheduler(blocks, limits, load_strategy(settings.strategy)),
        choices=Choices(texts.detokenizer, model.eos_token_ids, max_model_len),
        metrics=EngineMetrics(
            model=settings.served_name, role=str(settings.role), revision=settings.revision
        ),
        epoch=epoch,
        lease_seconds=settings.lease_seconds,
        warm_up_token_ms=token_ms,
    )
    return Instance(parts, pool, _info(settings, model, texts, layout.blocks, max_model_len, epoch))


def _max_model_len(settings: Settings, model: LoadedModel, layout: PoolLayout) -> int:
    """Longest context: what was asked, else what the model was made for or what the pool holds, if
    that is less. The pool has a block to spare, so that one request alone can always finish."""
    asked = settings.max_model_len
    if asked is not None and asked > model.max_positions:
        raise ModelError(
            f"max-model-len {asked} is over the model's own {model.max_positions} positions: "
            "lower it"
        )
    pooled = (layout.blocks - 1) * layout.block_tokens
    if pooled < 2:
        raise ModelError("the KV cache holds one block only: raise kv-cache")
    longest = asked or model.max_positions
    if longest <= pooled:
        return longest
    needed = f"{_pool_mebibytes(longest, layout)}Mi"
    if asked is not None:
        raise ModelError(
            f"max-model-len {asked} is over the {pooled} tokens that the KV cache holds: "
            f"lower it, or raise kvCache to {needed}"
        )
    log.info(
        "contexts end at %d tokens, which is what the KV cache holds: the model's own %d "
        "take a kvCache of %s",
        pooled,
        longest,
        needed,
    )
    return pooled


def _pool_mebibytes(tokens: int, layout: PoolLayout) -> int:
    """Of a pool that holds a context of so many tokens, and a block to spare; rounded up."""
    blocks = -(-tokens // layout.block_tokens) + 1
    return -(-replace(layout, blocks=blocks).pool_bytes // (1 << 20))


def _info(
    settings: Settings,
    model: LoadedModel,
    texts: _Texts,
    blocks: int,
    max_model_len: int,
    epoch: int,
) -> InstanceInfo:
    return InstanceInfo(
        instance=settings.instance,
        role=str(settings.role),
        unit=settings.unit,
        revision=settings.revision,
        domain=settings.domain,
        epoch=epoch,
        fingerprint=fingerprint(
            model.config,
            model.weights,
            model.kv,
            dtype=model.dtype,
            kv_dtype=model.dtype,
            block_tokens=settings.block_tokens,
        ),
        model=settings.served_name,
        strategy=str(settings.strategy.name),
        block_tokens=settings.block_tokens,
        total_blocks=blocks,
        max_model_len=max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        vocab_size=model.vocab_size,
        bos_token_id=model.bos_token_id,
        eos_token_ids=list(model.eos_token_ids),
        chat_template=texts.chat_template,
        files=texts.files,
        sampling_defaults=dict(model.sampling_defaults),
        version=importlib.metadata.version("distserve"),
    )


def _copy_blocks(pool: KvPool, copies: Sequence[Copy]) -> None:
    if not copies:
        return
    sources = torch.tensor([copy.source for copy in copies])
    targets = torch.tensor([copy.target for copy in copies])
    pool.tensor[:, :, targets] = pool.tensor[:, :, sources]
