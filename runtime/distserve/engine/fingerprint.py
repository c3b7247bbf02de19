"""The digest that two instances must share before one's KV means anything to the other.

Made from the whole model, not from a rank's slice: tensor and pipeline sizes may differ between
instances that exchange KV. Paths, instance names and the pool's size are left out for that reason.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distserve.engine.loading import WeightEntry
from distserve.engine.pool import KvShape
from distserve.wire.messages import PROTOCOL

_VOLATILE = frozenset(
    ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
)
"""Keys of config.json that do not change what the KV is."""


def fingerprint(
    config: Mapping[str, Any],
    weights: Sequence[WeightEntry],
    kv: KvShape,
    *,
    dtype: str,
    kv_dtype: str,
    block_tokens: int,
) -> str:
    """32 hex digits. `config` is config.json as the model was built from it (rope and quantisation
    settings are in it), `weights` its index with a sample of each tensor's bytes."""
    record = {
        "protocol": PROTOCOL,
        "config": {key: value for key, value in config.items() if key not in _VOLATILE},
        "weights": sorted((w.name, list(w.shape), w.dtype, w.sample) for w in weights),
        "dtype": dtype,
        "pool": {
            "layers": kv.layers,
            "kv_heads": kv.kv_heads,
            "head_dim": kv.head_dim,
            "dtype": kv_dtype,
            "block_tokens": block_tokens,
            "order": "layer,kv,block,token,head,dim",
        },
    }
    packed = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str).encode()
    return hashlib.blake2b(packed, digest_size=16, person=b"distserve-model").hexdigest()
