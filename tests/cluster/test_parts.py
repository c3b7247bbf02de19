"""What can be told of the test cluster without starting one."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from tools.cluster import __main__ as command
from tools.cluster import binaries, given, home, host, kind, providers, search_path
from tools.cluster.addresses import SLOTS, Addresses, free_slots
from tools.cluster.cluster import CHECKOUT
from tools.cluster.errors import ClusterError, CommandFailed, DidNotCome, Unavailable
from tools.cluster.images import Layer, host_python_pod, write_archive
from tools.cluster.processes import Processes
from tools.cluster.profiles import Profile, Provider
from tools.cluster.progress import Progress
from tools.cluster.waiting import run, tail, wait_for


@hypothesis_given(
    taken=st.sets(st.integers(0, SLOTS - 1)), second=st.sets(st.integers(0, 255), max_size=20)
)
def test_a_free_slot_shares_nothing(taken: set[int], second: set[int]) -> None:
    routes = [f"10.{number}.16.0/20" for number in second]
    free = {addresses.slot for addresses in free_slots(taken, routes)}
    assert free == set(range(SLOTS)) - taken - {number - 200 for number in second}


def test_all_addresses_of_a_cluster_lie_in_its_own_networks() -> None:
    one, other = Addresses(3), Addresses(4)
    names = ("loopback", "bridge", "network", "services", "dns_service", "fake_pods")
    assert all(getattr(one, name) != getattr(other, name) for name in names)
    assert one.node_address(2) == "10.203.0.12"
    assert one.pods(2) == "10.203.2.0/24"


def test_a_wait_ends_in_time_with_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    with pytest.raises(DidNotCome) as failed:
        wait_for("the server", lambda: False, 0.1, explain=lambda: tail(log, 2))
    assert str(failed.value) == "waited 0.1 s in vain for the server\nline 98\nline 99"
    assert "never written" in tail(tmp_path / "none.log")


def test_a_command_that_fails_or_hangs_says_what_it_said() -> None:
    with pytest.raises(CommandFailed, match="ended with 3: because") as failed:
        run(["sh", "-c", "echo because >&2; exit 3"])
    assert failed.value.status == 3
    with pytest.raises(DidNotCome, match=r"had not ended after 0\.2 s\nalready"):
        run(["sh", "-c", "echo already >&2; exec sleep 60"], seconds=0.2)


def test_an_image_archive_is_what_the_oci_layout_asks_for(tmp_path: Path) -> None:
    def write(name: str) -> bytes:
        layer = Layer()
        layer.folder("tmp", mode=0o1777)
        layer.file("bin/tool", b"program", mode=0o755)
        layer.link("tool", "bin/tool")
        write_archive(tmp_path / name, "localhost/some/image:7", layer, entrypoint=["/tool"])
        return (tmp_path / name).read_bytes()

    archive = write("one.tar")
    assert archive == write("two.tar"), "equal content is equal bytes"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        content = {name: file.read() for name, file in files.items() if file is not None}
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"

    def blob_of(descriptor: dict[str, Any]) -> bytes:
        found = content[descriptor["digest"].replace("sha256:", "blobs/sha256/")]
        assert len(found) == descriptor["size"]
        return found

    (named,) = json.loads(content["index.json"])["manifests"]
    assert named["annotations"]["io.containerd.image.name"] == "localhost/some/image:7"
    manifest = json.loads(blob_of(named))
    assert json.loads(blob_of(manifest["config"]))["config"]["Entrypoint"] == ["/tool"]
    with tarfile.open(fileobj=io.BytesIO(blob_of(manifest["layers"][0]))) as tree:
        assert {entry.name: entry.mode & 0o7777 for entry in tree} == {
            "tmp": 0o1777,
            "bin/tool": 0o755,
            "tool": 0o644,
        }


def test_a_python_pod_mounts_what_this_python_needs() -> None:
    pod = host_python_pod("some", ["-c", "pass"], CHECKOUT, "/machine", nodeName="node1")
    (container,) = pod["spec"]["containers"]
    inside = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    for needed in (
        Path(sys.executable),
        Path(sys.executable).resolve(),
        Path(os.__file__),
        CHECKOUT,
    ):
        assert any(needed.is_relative_to(path) for path in inside), needed
    assert [volume["hostPath"]["path"] for volume in pod["spec"]["volumes"]] == [
        f"/machine{path}" for path in inside
    ]
    assert pod["spec"]["nodeName"] == "node1"


def test_a_home_is_stale_when_its_owner_is_gone(empty_cache: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        identity = home.process_identity(owner.pid)
        assert identity is not None
        owned = home.Home("x", Provider.LOCAL, Profile.REAL, 0, identity)
        assert not owned.stale
        owner.kill()
    assert owned.stale
    other = identity.rpartition(":")[0] + ":1"
    assert home.Home("x", Provider.LOCAL, Profile.REAL, 0, other).stale, "the number was reused"


def test_a_kept_home_lasts_until_the_machine_restarts(empty_cache: Path) -> None:
    kept = home.Home("x", Provider.LOCAL, Profile.REAL, 0, home.boot_identity())
    assert kept.kept and not kept.stale
    assert home.Home("x", Provider.LOCAL, Profile.REAL, 0, "an-earlier-boot").stale


def test_claims_are_found_again_and_never_share_a_slot(empty_cache: Path) -> None:
    claimed = [
        home.claim(f"c{number}", Provider.LOCAL, Profile.CONTROL_PLANE, keep=False)
        for number in range(3)
    ]
    assert home.homes() == claimed
    assert len({one.slot for one in claimed}) == 3
    with pytest.raises(ClusterError, match="there is a cluster c1"):
        home.claim("c1", Provider.LOCAL, Profile.CONTROL_PLANE, keep=False)
    for one in claimed:
        one.remove()
    assert home.homes() == []


def test_a_program_is_built_anew_when_its_module_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "GO_MODULES", tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "go.mod").write_text("module some\n")
    (tmp_path / "some" / "go.sum").write_text("")
    before = binaries.Program("tool", "some", ".").built
    assert binaries.Program("tool", "some", ".").built == before
    (tmp_path / "some" / "go.sum").write_text("changed\n")
    assert binaries.Program("tool", "some", ".").built != before


# Leaves objects that nobody may write to, as the real one does.
@pytest.mark.parametrize("lives", [False, True], ids=["no cluster", "a cluster"])
def test_a_build_leaves_its_programs_and_no_other_version_of_them(
    go: Callable[[int], None], empty_cache: Path, lives: bool
) -> None:
    """But beside a cluster, which may run the other one."""
    go(0)
    if lives:
        home.claim("lives", Provider.LOCAL, Profile.CONTROL_PLANE, keep=False)
    built = empty_cache / "distserve" / "cluster"
    former = [f"{module}-{'0' * 16}" for module in ("kubernetes", "kubernetes-next", "tools")]
    for folder in former:
        (built / folder).mkdir(parents=True)
    path = binaries.ensure(["kubectl"], Progress())["kubectl"]
    assert path.read_text() == "built\n"
    assert {one.name for one in built.iterdir()} == {
        *(".lock", path.parent.name),
        *(former if lives else former[1:]),
    }


def test_a_build_that_fails_leaves_nothing(go: Callable[[int], None], empty_cache: Path) -> None:
    go(1)
    with pytest.raises(CommandFailed, match="no network"):
        binaries.ensure(["kubectl"], Progress())
    left = (empty_cache / "distserve" / "cluster").rglob("*")
    assert [path.name for path in left if path.is_file()] == [".lock"]
    assert not (empty_cache / "distserve" / "cluster" / "build").exists()


def test_every_program_has_a_pinned_module() -> None:
    for program in binaries.PROGRAMS.values():
        assert (program.source / "go.sum").stat().st_size > 0
    assert binaries.kubernetes_version().startswith("1.34.")
    assert binaries.kubernetes_version(binaries.NEXT).startswith("1.36.")


def test_servers_of_the_next_release_take_the_places_of_the_pinned_ones(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    for name in binaries.PROGRAMS:
        built = binaries.PROGRAMS[name].built
        built.parent.mkdir(parents=True, exist_ok=True)
        built.write_text("")
    pinned = binaries.ensure(binaries.CONTROL_PLANE, Progress())
    later = binaries.ensure_next(binaries.CONTROL_PLANE, Progress())
    assert pinned.keys() == later.keys()
    other = {name for name in pinned if pinned[name] != later[name]}
    assert other == set(binaries.SERVERS)


def test_a_machine_without_anything_is_told_what_to_install(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr(host, "CNI_FOLDERS", ())
    with pytest.raises(Unavailable) as lacking:
        host.check(real_nodes=True)
    for package in ("containerd", "runc", "containernetworking-plugins", "nftables", "openssl"):
        assert package in str(lacking.value)
    with pytest.raises(Unavailable, match=r"install Go 1\.\d+ or newer"):
        binaries.ensure(["etcd"], Progress())


def test_whoever_provides_a_cluster_its_clients_are_there_before_tests(
    go: Callable[[int], None], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "choose", lambda: Provider.KIND)
    programs = Path(os.environ["PATH"].partition(":")[0])
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(Unavailable, match="install Go"):
        providers.prepare(Profile.REAL, Progress())
    for name in binaries.CLIENTS:
        (programs / name).write_text("")
        (programs / name).chmod(0o755)
    providers.prepare(Profile.REAL, Progress())
    assert binaries.client("helm", Progress()) == programs / "helm"


def test_a_program_that_is_found_is_started(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's `su` keeps the folders of root's programs out of PATH."""
    program = tmp_path / "of-root"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(search_path, "ROOTS", str(tmp_path))
    assert host._which("of-root") == str(program)
    claimed = home.claim("some", Provider.LOCAL, Profile.CONTROL_PLANE, keep=False)
    started = Processes(claimed).start("some", ["of-root"])
    assert started._running is not None and started._running.wait(20) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is a cluster mine of profile control-plane"),
        (["--profile=control-plane", "--nodes=2"], "--nodes 2: only a cluster of profile real"),
    ],
    ids=["another profile", "nodes of none"],
)
def test_up_refuses_what_it_would_not_do(
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.delenv(given.VARIABLE, raising=False)
    kept = home.claim("mine", Provider.LOCAL, Profile.CONTROL_PLANE, keep=True)
    assert command.main(["up", "--name=mine", "--profile=control-plane"]) == 0
    assert capsys.readouterr().out == f"export KUBECONFIG={kept.kubeconfig}\n"
    assert command.main(["up", "--name=mine", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err and err.count("\n") == 1


def test_assets_of_another_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "kube-apiserver"
    server.write_text("#!/bin/sh\necho Kubernetes v1.29.3\n")
    server.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(Unavailable, match=r"setup-envtest use 1\.34"):
        binaries.find("kube-apiserver")
    server.write_text("#!/bin/sh\necho Kubernetes v1.34.1\n")
    binaries._check_asset_version.cache_clear()
    assert binaries.find("kube-apiserver") == server
    assert binaries.find("kubectl") != tmp_path / "kubectl", "what is not there is not taken"


def test_providers_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(given.VARIABLE, "/some/kubeconfig")
    monkeypatch.setattr(kind, "usable", lambda: True)
    assert providers.choose() is Provider.GIVEN
    monkeypatch.delenv(given.VARIABLE)
    monkeypatch.setenv("KUBECONFIG", "/some/kubeconfig")
    assert providers.choose() is Provider.KIND, "KUBECONFIG alone opts in to nothing"
    monkeypatch.setattr(kind, "usable", lambda: False)
    assert providers.choose() is Provider.LOCAL


def test_kind_makes_as_many_nodes_as_asked() -> None:
    assert str(kind.configuration(2)).count("'role': 'worker'") == 2
    assert str(kind.configuration(0)).count("'role': 'worker'") == 0
