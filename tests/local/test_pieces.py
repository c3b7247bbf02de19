"""The pure parts of the runner: expansion, mount paths, probes' thresholds, quantiles, checks."""

import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distserve.api.durations import parse_duration
from distserve.api.loading import parse_deployment
from distserve.gateway.server import FAIL_SECONDS
from distserve.local import checks, rundir
from distserve.local.addresses import reserve_addresses
from distserve.local.errors import Refused
from distserve.local.launch import Place, expand, launch, rewrite
from distserve.local.localise import localised, with_one_gateway
from distserve.local.probes import ProbeCount
from distserve.local.specs import ContainerSpec, Inventory, PodSpec, ProbeSpec, read_inventory
from distserve.local.stats import GatewayStats, parse_stats
from distserve.local.table import format_bytes, format_ms
from distserve.local.targets import prepare_targets
from distserve.resources.render import render
from distserve.resources.settings import RenderSettings, released_images


def deployment(**spec: Any) -> Any:
    return parse_deployment(
        {
            "kind": "DistServeDeployment",
            "apiVersion": "distserve.io/v1alpha1",
            "metadata": {"name": "tiny"},
            "spec": {
                "model": {"id": "tiny", "source": {"builtin": "tiny"}},
                "accelerator": {"type": "CPU", "kvCache": "64Mi"},
                "prefill": {},
                "decode": {},
            }
            | spec,
        },
        "test",
    )


def local_objects(port: int = 8765, **spec: Any) -> list[dict[str, Any]]:
    settings = RenderSettings(released_images(), key="k" * 64)
    return localised(render(with_one_gateway(deployment(**spec)), settings), port)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"), ("x$(A)y$(B)", "x1y2"), ("$$(A)", "$(A)"), ("$(NONE)", "$(NONE)"),
        ("$A", "$A"), ("$(A", "$(A"),
    ],
)  # fmt: skip
def test_expansion_is_the_kubelets(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("/run/distserve/a.sock", "/x/run/a.sock"), ("/run/distserve", "/x/run"),
        ("file:/run/distserve/e", "file:/x/run/e"), ("/run/distserver", "/run/distserver"),
        ("/var/run/distserve", "/var/run/distserve"), ("/run/distserve/key/k", "/x/key/k"),
        ("exec --a /run/distserve --b", "exec --a /x/run --b"),
    ],
)  # fmt: skip
def test_mount_paths_are_rewritten_where_a_path_begins(text: str, rewritten: str) -> None:
    mounts = {"/run/distserve": Path("/x/run"), "/run/distserve/key": Path("/x/key")}
    assert rewrite(text, mounts) == rewritten


def test_rendered_engine_becomes_a_command_of_this_machine() -> None:
    inventory = read_inventory(local_objects())
    pod = next(p for p in inventory.pods if p.role == "prefill")
    folders = {v["name"]: Path("/f") / v["name"] for v in pod.volumes}
    place = Place(pod, "127.9.9.2", folders)
    started = launch(pod.containers[0], place, inventory, {"PATH": "/bin"}, 42)
    words = started.argv
    assert words[1:4] == ("-m", "distserve.cli.main", "engine")
    assert words[words.index("--host") + 1] == "127.9.9.2"
    assert words[words.index("--instance") + 1] == "tiny-u0-prefill-0-0"
    assert words[words.index("--key-file") + 1] == "/f/key/key"
    assert words[words.index("--migrator-socket") + 1] == "/f/run/migrator.sock"
    assert not [w for w in words if "$(" in w]
    assert started.environment["POD_IP"] == "127.9.9.2"
    assert started.environment["DISTSERVE_PARENT_PID"] == "42"
    assert started.environment["TMPDIR"] == started.environment["HOME"] == "/f/tmp"
    assert "/f/key/key" in " ".join(started.here(pod.containers[0].pre_stop))


def test_gateway_listens_on_the_asked_port() -> None:
    inventory = read_inventory(local_objects(port=8765))
    (gateway,) = [p for p in inventory.pods if p.is_gateway]
    (container,) = gateway.containers
    words = container.command
    assert words[words.index("--port") + 1] == "8765"
    assert words[words.index("--max-waiting-requests") + 1] == "512"
    assert words[words.index("--drain-deadline") + 1] == "25s", "no longer than at a terminal"
    assert container.readiness and container.readiness.port == 8765
    assert container.pre_stop == ()


@pytest.mark.parametrize(("asked", "here"), [("1s", "1s"), ("30s", "25s"), ("1h", "25s")])
def test_gateway_tells_its_streams_that_it_ends_before_it_is_killed(asked: str, here: str) -> None:
    inventory = read_inventory(local_objects(rollout={"drainDeadline": asked}))
    (gateway,) = [p for p in inventory.pods if p.is_gateway]
    words = gateway.containers[0].command
    assert words[words.index("--drain-deadline") + 1] == here
    assert gateway.grace_seconds > parse_duration(here) + FAIL_SECONDS


def test_gateway_hears_of_the_instances_by_a_file() -> None:
    inventory = read_inventory(local_objects())
    (gateway,) = [p for p in inventory.pods if p.is_gateway]
    folders = {v["name"]: Path("/f") / v["name"] for v in gateway.volumes}
    place = Place(gateway, "127.9.9.2", folders)
    words = launch(gateway.containers[0], place, inventory, {}, 42).argv
    assert words[words.index("--discovery") + 1] == "file:/f/discovery/endpoints.json"
    (config_map,) = inventory.config_maps.values()
    assert config_map["data"] == {"endpoints.json": '{"endpoints": []}'}


def test_init_container_is_refused() -> None:
    template = {"spec": {"initContainers": [{"name": "fetch", "command": ["x"]}]}}
    with pytest.raises(Refused, match="fetch"):
        read_inventory(local_objects(prefill={"podTemplate": template}))


def engine_with(**fields: Any) -> list[dict[str, Any]]:
    """With more in the prefill engine's container."""
    template = {"spec": {"containers": [{"name": "engine", **fields}]}}
    return local_objects(prefill={"podTemplate": template})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"envFrom": [{"secretRef": {"name": "s"}}]}, "container 'engine': envFrom is heeded by"),
        ({"workingDir": "/data"}, "workingDir"),
        ({"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}}, "lifecycle: postStart"),
        ({"lifecycle": {"preStop": {"httpGet": {"port": 80}}}}, "preStop: httpGet"),
        ({"readinessProbe": {"httpGet": {"scheme": "HTTPS"}}}, "readinessProbe: scheme HTTPS"),
        ({"readinessProbe": {"httpGet": {"host": "other"}}}, "readinessProbe: httpGet: host"),
        ({"startupProbe": {"grpc": {"port": 80}}}, "startupProbe: grpc"),
        ({"livenessProbe": {"httpGet": {"port": "web"}}}, "no port of the container is named 'web"),
        ({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}, "mounts a volume 'none'"),
        (
            {"volumeMounts": [{"name": "tmp", "mountPath": "/x", "subPathExpr": "$(POD_NAME)"}]},
            "volumeMounts: subPathExpr",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_a_cluster_heeds_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        read_inventory(engine_with(**fields))


def test_a_pod_that_lacks_what_an_api_server_asks_for_is_refused() -> None:
    side = {"name": "side", "command": ["run"], "livenessProbe": {"httpGet": {"path": "/"}}}
    template = {"spec": {"containers": [side]}}
    with pytest.raises(Refused, match="tiny-u0-prefill-0: a port is lacking in its pods"):
        read_inventory(local_objects(prefill={"podTemplate": template}))


def test_what_says_nothing_to_a_process_is_left_out() -> None:
    objects = engine_with(
        imagePullPolicy="Always",
        workingDir="",
        readinessProbe={"httpGet": {"scheme": "HTTP"}, "periodSeconds": 7},
    )
    pod = next(p for p in read_inventory(objects).pods if p.role == "prefill")
    (engine,) = pod.containers
    assert engine.readiness == ProbeSpec(8100, "/readyz", period_seconds=7, timeout_seconds=3)


def test_a_variable_is_the_same_folder_in_arguments_and_environment() -> None:
    container = ContainerSpec(
        "c",
        ("run", "$(WHERE)", "--into=$(WHERE)/y"),
        environment=({"name": "WHERE", "value": "/tmp/x"},),
        mounts=({"name": "tmp", "mountPath": "/tmp"},),
    )
    place = Place(
        PodSpec("p", "default", {}, (container,)), "127.9.9.2", {"tmp": Path("/tmp/r/p0/tmp")}
    )
    started = launch(container, place, Inventory(()), {}, 42)
    assert started.here(("test", "-e", "/tmp/x")) == ("test", "-e", "/tmp/r/p0/tmp/x")
    assert started.environment["WHERE"] == "/tmp/r/p0/tmp/x"
    assert started.argv == ("run", "/tmp/r/p0/tmp/x", "--into=/tmp/r/p0/tmp/x/y")


@given(
    results=st.lists(st.booleans(), max_size=40),
    failures=st.integers(1, 4),
    successes=st.integers(1, 4),
)
def test_probe_changes_its_mind_after_a_streak(
    results: list[bool], failures: int, successes: int
) -> None:
    count = ProbeCount(ProbeSpec(failure_threshold=failures, success_threshold=successes))
    for end in range(1, len(results) + 1):
        before = count.passing
        count.record(results[end - 1])
        last = results[end - 1]
        needed = successes if last else failures
        streak = end >= needed and set(results[end - needed : end]) == {last}
        assert count.passing == (last if streak else before)


def test_gateway_stats_are_read() -> None:
    stats = parse_stats(
        {
            "ready": True,
            "instances": [{"ready": True}, {"ready": False}],
            "requests": {
                "total": 10, "by_code": {"200": 8, "429": 1, "500": 1}, "in_flight": 2,
                "waiting": 0,
            },
            "ttft_ms": {"p50": 50.0, "p90": 90.0},
            "tpot_ms": {"p50": None, "p90": None},
            "kv_transfer_bytes": 12,
            "transports": {"TCP": 12, "SharedMemory": 0},
        }
    )  # fmt: skip
    assert (stats.requests, stats.failed, stats.in_flight, stats.ready_instances) == (10, 1, 2, 1)
    assert (stats.ttft_ms, stats.tpot_ms) == ((50.0, 90.0), (None, None))
    assert stats.moved_bytes == 12
    assert stats.moved_since(GatewayStats(kv_bytes={"TCP": 2})) == {"TCP": 10}


def test_numbers_look_like_numbers() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 GiB",
    ]  # fmt: skip
    assert [format_ms(n) for n in (None, 1.26, 250.4)] == ["-", "1.3 ms", "250 ms"]


def test_two_runners_get_different_addresses() -> None:
    with (
        reserve_addresses(random.Random(1)) as one,
        reserve_addresses(random.Random(1)) as other,
    ):
        assert one.prefix != other.prefix
    with reserve_addresses(random.Random(1)) as again:
        assert again == one
        with pytest.raises(Refused):
            again.pod(300)


def test_folder_of_a_dead_runner_is_removed_and_that_of_a_living_one_kept(tmp_path: Path) -> None:
    dead = tmp_path / f"{rundir.PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    (tmp_path / "another").mkdir()
    with rundir.run_directory(tmp_path) as living:
        assert not dead.exists()
        with rundir.run_directory(tmp_path) as second:
            assert living.exists() and second != living
    assert [p.name for p in tmp_path.iterdir()] == ["another"]


def test_checks_say_the_cure(tmp_path: Path) -> None:
    for spec, said in (
        ({"prefill": {"parallelism": {"tensor": 2}}}, "NotSupportedByEngine: spec.prefill"),
        ({"accelerator": {"type": "GPU"}}, "NotSupportedByEngine: spec.accelerator.type"),
        ({"kvTransfer": {"hostSharing": True}}, "hostSharing: processes of one machine share"),
        ({"model": {"id": "m", "source": {"hostPath": "/no/such"}}}, "/no/such is no folder"),
        ({"model": {"id": "m", "source": {"imagePath": "/no/such"}}}, "imagePath: /no/such is no"),
        ({"model": {"id": "m", "source": {"hostPath": str(tmp_path)}}}, "has no config.json"),
        (
            {"model": {"id": "m", "source": {"persistentVolumeClaim": {"claimName": "c"}}}},
            "use hostPath",
        ),
        (
            {
                "topology": {
                    "levels": [{"name": "zone", "nodeLabel": "zone"}],
                    "packWithin": "zone",
                    "expectedBandwidth": {"zone": "1G"},
                    "fabricRequired": True,
                }
            },
            "fabricRequired: there is no operator here",
        ),
    ):
        with pytest.raises(Refused, match=said):
            checks.check_deployment(deployment(**spec))
    with pytest.raises(Refused, match="not enough memory: 3 pods ask for 2"):
        checks.check_memory(read_inventory(local_objects()), 1 << 30)
    checks.check_memory(read_inventory(local_objects()), 64 << 30)
    assert checks.available_memory_bytes() > 0


@pytest.mark.parametrize("memory", [1 << 30, 1.2e9, "1e9", "1Gi"])
def test_memory_is_read_as_a_cluster_reads_it(memory: object) -> None:
    inventory = read_inventory(engine_with(resources={"requests": {"memory": memory}}))
    checks.check_memory(inventory, 64 << 30)
    with pytest.raises(Refused, match="3 pods ask for 2"):
        checks.check_memory(inventory, 2 << 30)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_port_that_is_none(port: int) -> None:
    with pytest.raises(Refused, match=f"port {port} is none: choose one from 1 to 65535"):
        checks.check_port(port)


def test_targets_are_kept_until_there_are_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    prepare_targets(file)
    assert json.loads(file.read_text()) == []
    file.write_text('[{"targets": []}]')
    prepare_targets(file)
    assert file.read_text() == '[{"targets": []}]'


def test_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} is in use"):
            checks.check_port(port)
    checks.check_port(checks.free_port())
