"""The engine's metrics: vLLM's set with the same meanings, under `distserve_engine_`.

Each engine has a registry of its own. All series exist from the start.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from distserve.engine.lifecycle import Moments

PREFIX = "distserve_engine_"
FINISHED_REASONS = ("stop", "length", "abort", "error", "handoff")
"""handoff: a prefill leg whose choices go on elsewhere."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5, 10, 20, 40,
            80, 160, 640)  # fmt: skip
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class EngineMetrics:
    def __init__(self, **identity: str) -> None:
        """`identity`: labels of the instance's info series (model, role, revision)."""
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(PREFIX + name, text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(PREFIX + name, text, registry=registry, buckets=buckets)

        info = Info(PREFIX + "instance", "What this instance is.", registry=registry)
        info.info(identity)
        self._running = gauge("num_requests_running", "Requests that are computed.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait to be computed.")
        self._usage = gauge("kv_cache_usage_perc", "Share of KV blocks that are held. 1 is all.")
        self._queries = counter("prefix_cache_queries", "Prompt tokens looked up in the cache.")
        self._hits = counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self._prompt = counter("prompt_tokens", "Prompt tokens computed or found in the cache.")
        self._generated = counter("generation_tokens", "Tokens generated.")
        self._success = counter("request_success", "Choices that ended.", ("finished_reason",))
        for reason in FINISHED_REASONS:
            self._success.labels(reason)
        self._preemptions = counter("num_preemptions", "Sequences that lost their blocks.")
        self._queue_seconds = histogram("request_queue_time_seconds", "Arrival until begun.")
        self._prefill_seconds = histogram("request_prefill_time_seconds", "Context begin to end.")
        self._decode_seconds = histogram("request_decode_time_seconds", "Decoding begin to end.")
        self._iteration = histogram("iteration_tokens_total", "New tokens of a step.", _TOKENS)

    def load(self, running: int, waiting: int, usage: float) -> None:
        self._running.set(running)
        self._waiting.set(waiting)
        self._usage.set(usage)

    def looked_up(self, tokens: int, cached_tokens: int) -> None:
        """Also by a decode leg: what is cached here need not be fetched."""
        self._queries.inc(tokens)
        self._hits.inc(cached_tokens)

    def prefilled(self, prompt_tokens: int) -> None:
        self._prompt.inc(prompt_tokens)

    def step(self, tokens: int, generated: int, preempted: int) -> None:
        self._iteration.observe(tokens)
        self._generated.inc(generated)
        self._preemptions.inc(preempted)

    def finished(self, reason: str) -> None:
        self._success.labels(reason).inc()

    def leg_ended(self, moments: Moments) -> None:
        for histogram, seconds in (
            (self._queue_seconds, moments.queue_seconds),
            (self._prefill_seconds, moments.prefill_seconds),
            (self._decode_seconds, moments.decode_seconds),
        ):
            if seconds is not None:
                histogram.observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)
