"""What an engine process is started with: the flags of `distserve engine`, parsed and checked."""

from dataclasses import dataclass
from pathlib import Path

from distserve.api.strategies import Role, StrategySpec


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: Path
    """Folder of the checkpoint."""
    served_name: str
    """Name that clients use."""
    role: Role
    strategy: StrategySpec
    instance: str
    unit: str = ""
    revision: str
    domain: str = ""
    """Of the fabric that it is placed in."""
    host: str
    port: int
    migrator_socket: Path | None
    """None: the instance cannot migrate."""
    key: bytes
    dtype: str = "auto"
    max_model_len: int | None = None
    """None: what the model was made for, or what the KV cache holds, if that is less."""
    kv_cache_bytes: int = 64 << 20
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefix_caching: bool = True
    lease_seconds: float = 30.0
