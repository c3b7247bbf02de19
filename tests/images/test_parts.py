"""What can be told of the images without building one."""

import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.cluster.errors import CommandFailed, DidNotCome, Unavailable
from tools.cluster.images import Layer, write_archive
from tools.cluster.progress import Progress, Step
from tools.images import __main__ as command
from tools.images import archive, builders
from tools.images.base import LocalBase, install_packages
from tools.images.build import archives
from tools.images.context import CHECKOUT, TARGETS, Context
from tools.images.subset import main as write_subsets
from tools.images.subset import subset

PACKAGES = CHECKOUT / "tools" / "images" / "packages"
# What an image must not hold, in the words of a lock.
ABSENT = {
    "operator": {"torch", "transformers", "fastapi", "uvicorn"},
    "gateway": {"torch", "transformers", "kubernetes", "kopf"},
    "migrator": {"torch", "transformers", "pydantic", "fastapi", "kubernetes", "kopf"},
    "engine": {"kubernetes", "kopf"},
}


def listed(target: str) -> set[str]:
    return set((PACKAGES / f"{target}.txt").read_text().split())


def names_of(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {match[0].lower() for match in found if match} - {"distserve"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_list_holds_what_its_process_asks_for_and_nothing_of_others(target: str) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"][target]]
    assert names_of(asked) <= listed(target)
    assert not listed(target) & ABSENT[target]


@pytest.mark.parametrize("target", TARGETS)
def test_every_listed_package_is_locked_with_hashes(target: str) -> None:
    chosen = subset((CHECKOUT / "requirements.lock").read_text(), listed(target))
    requirements = [line for line in chosen.splitlines() if not line.startswith(" ")]
    assert {line.partition("==")[0] for line in requirements} == listed(target)
    assert all(line.endswith("\\") for line in requirements)  # A hash follows.


def test_the_build_backend_is_the_one_that_pyproject_pins() -> None:
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["build-system"]["requires"]
    locked = (CHECKOUT / "tools" / "images" / "build.lock").read_text()
    assert all(f"{requirement} \\\n" in locked for requirement in wanted)


@given(
    names=st.sets(st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z]{1,3})?", fullmatch=True), min_size=1),
    data=st.data(),
)
def test_a_subset_is_those_entries_and_no_other(names: set[str], data: st.DataObject) -> None:
    entries = {
        name: f"{name}==1.0 ; python_version < '4' \\\n    --hash=sha256:{number:04}\n"
        for number, name in enumerate(sorted(names))
    }
    lock = "# made by a tool\n" + "".join(f"{entry}    # via x\n" for entry in entries.values())
    wanted = data.draw(st.sets(st.sampled_from(sorted(names))))
    assert subset(lock, wanted) == "".join(entries[name] for name in sorted(wanted))


def test_a_subset_of_what_is_not_locked_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no nothing: run `make lock`"):
        subset("one==1 \\\n    --hash=sha256:0\n", ["one", "nothing"])
    (tmp_path / "all.lock").write_text("one==1 \\\n    --hash=sha256:0\ntwo==2\n")
    (tmp_path / "some.txt").write_text("one\n")
    assert write_subsets([str(tmp_path / "all.lock"), str(tmp_path / "some.txt")]) == 0
    assert (tmp_path / "some.lock").read_text() == "one==1 \\\n    --hash=sha256:0\n"


def test_the_dockerfile_is_pinned_and_has_every_target() -> None:
    text = (CHECKOUT / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert base and re.fullmatch(r"\S+:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base[1])
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    names = [name for _, name in stages]
    assert names[-len(TARGETS) :] == list(TARGETS)
    assert {source for source, _ in stages} <= {"${BASE}", "scratch", *names}
    assert f"ARG VERSION={Context().version}\n" in text


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "source" / "__pycache__").mkdir(parents=True)
    (tmp_path / "source" / "code.py").write_text("1")
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    sent = ("pyproject.toml", "requirements.lock", "source", "tools/images/build.lock")
    rules = "".join(f"!{path}\n" for path in sent)
    (tmp_path / ".dockerignore").write_text(f"*\n{rules}**/__pycache__\n")
    (tmp_path / "requirements.lock").write_text("one==1")
    (tmp_path / "tools" / "images").mkdir(parents=True)
    (tmp_path / "tools" / "images" / "build.lock").write_text("two==2")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2"\n')
    (tmp_path / "README.md").write_text("words")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "matters"),
    [
        ("source/code.py", True),
        ("source/deep/more.txt", True),
        ("Dockerfile", True),
        ("source/__pycache__/code.pyc", False),
        ("README.md", False),
        ("elsewhere/code.py", False),
    ],
)
def test_an_archive_is_named_by_what_can_change_the_image(
    checkout: Path, path: str, matters: bool
) -> None:
    context = Context(checkout)
    before = context.key("base")
    assert before == Context(checkout).key("base") != context.key("other base")
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("2")
    assert (context.key("base") != before) is matters


def test_a_build_is_of_the_files_that_its_archive_is_named_by(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    context = Context(checkout)
    copy = context.copy_to(tmp_path_factory.mktemp("copy"))
    assert copy.key("base") == context.key("base") and copy.version == "1.2"
    assert not (copy.folder / "README.md").exists()
    (checkout / "source" / "code.py").write_text("edited meanwhile")
    assert copy.key("base") != context.key("base")


def test_every_path_that_a_builder_is_sent_exists() -> None:
    rules = (CHECKOUT / ".dockerignore").read_text().splitlines()
    allowed = [CHECKOUT / rule[1:] for rule in rules if rule.startswith("!")]
    assert allowed and all(path.exists() for path in allowed)
    assert Context().image("gateway") == f"docker.io/distserve/gateway:{Context().version}"


def entries(*paths: str) -> list[tarfile.TarInfo]:
    return [tarfile.TarInfo(path) for path in paths]


def test_files_are_those_of_the_merged_layers() -> None:
    below = entries("./", "./a", "etc/b", "etc/c", "opt/", "opt/d", "opt/e/f", "opt2/g")
    above = entries("etc/.wh.b", "opt/new", "opt/.wh..wh..opq", ".wh.a")
    assert set(archive.merged([below, above])) == {"etc/c", "opt/new", "opt2/g"}
    assert set(archive.merged([above, below])) >= {"a", "etc/b"}


def test_an_archive_has_its_name_whatever_the_builder_called_it(tmp_path: Path) -> None:
    layer = Layer()
    layer.file("hello", b"x")
    write_archive(tmp_path / "of-builder.tar", "some/name:1", layer, entrypoint=["/hello"])
    with tarfile.open(tmp_path / "of-builder.tar") as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    archive.write_archive(tmp_path / "layout", "docker.io/x/y:2", tmp_path / "ours.tar")
    image = archive.Image(tmp_path / "ours.tar")
    assert image.name == "docker.io/x/y:2"
    assert image.config["Entrypoint"] == ["/hello"]
    assert set(image.files) == {"hello"}
    assert image.size_bytes == sum(layer.size_bytes for layer in image.layers) > 0


def test_a_builder_without_oci_layout_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Docker 25"):
        archive.write_archive(tmp_path, "x:1", tmp_path / "x.tar")


@pytest.fixture
def step() -> Step:
    return Step("test", io.StringIO(), live=False)


def test_a_build_that_fails_shows_its_last_words(step: Step) -> None:
    program = "import sys; print('STEP 1'); sys.exit('no such package')"
    with pytest.raises(CommandFailed, match="no such package"):
        builders.follow([sys.executable, "-c", program], step, 60)


def test_a_build_that_hangs_is_ended(step: Step) -> None:
    program = "import time; print('STEP 7: wait', flush=True); time.sleep(600)"
    with pytest.raises(DidNotCome, match=r"not ended after 3 s\nSTEP 7"):
        builders.follow([sys.executable, "-c", program], step, 3)


def test_the_machines_way_to_the_registries_is_lent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "absent"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    (tmp_path / "pip.conf").write_text("[global]\n")
    (tmp_path / "ca.pem").write_text("certificate")
    wanted = {"pip.conf": tmp_path / "pip.conf", "ca.crt": tmp_path / "ca.pem"}
    assert builders.machine_secrets() == wanted
    flags = builders.build_flags(Context(), "gateway", "some/base:1")
    assert "--build-arg=BASE=some/base:1" in flags
    assert f"--secret=id=ca.crt,src={tmp_path / 'ca.pem'}" in flags
    assert not any("BASE" in flag for flag in builders.build_flags(Context(), "gateway", ""))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts programs of these names, which all succeed or fail, on an otherwise empty PATH. What
    they are asked for they answer with `version`."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def put(*names: str, status: int = 0, version: str = "25.0.5") -> None:
        for name in names:
            program = tmp_path / "bin" / name
            program.write_text(f"#!/bin/sh\necho {version}\nexit {status}\n")
            program.chmod(0o755)

    return put


def test_the_first_builder_that_answers_is_taken(
    tmp_path: Path, programs: Callable[..., None]
) -> None:
    programs("buildah", "mmdebstrap")
    programs("docker", "podman", status=1)
    quiet = Progress(io.StringIO())
    found = builders.choose(tmp_path, "key", "some/base:1", quiet)
    assert isinstance(found, builders.Buildah) and found.base == "some/base:1"
    programs("podman")
    assert builders.choose(tmp_path, "key", "", quiet) == builders.Engine("podman")
    programs("docker")
    assert builders.choose(tmp_path, "key", "", quiet) == builders.Engine("docker")


def test_a_builder_that_writes_no_oci_layout_is_passed_over(
    tmp_path: Path, programs: Callable[..., None]
) -> None:
    programs("docker", version="20.10.24+dfsg1")
    programs("podman", version="4.3.1")
    quiet = Progress(io.StringIO())
    assert builders.choose(tmp_path, "key", "", quiet) == builders.Engine("podman")


def test_docker_without_buildx_is_passed_over(
    tmp_path: Path, programs: Callable[..., None]
) -> None:
    programs("docker", "podman")
    script = '#!/bin/sh\necho 25.0.5\n[ "$1" != buildx ]\n'
    (tmp_path / "bin" / "docker").write_text(script)
    quiet = Progress(io.StringIO())
    assert builders.choose(tmp_path, "key", "", quiet) == builders.Engine("podman")


DOCKER = """#!/bin/sh
echo "$@" >> {log}
echo 25.0.5
for word in "$@"; do
  case $word in --output=*) /bin/cp {saved} "${{word#--output=}}";; esac
done
"""


def test_what_is_current_is_not_built_again_and_what_is_old_goes(
    checkout: Path, tmp_path: Path, programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    saved, log = tmp_path / "saved.tar", tmp_path / "log"
    write_archive(saved, "some/name:1", Layer())
    programs("docker")
    (tmp_path / "bin" / "docker").write_text(DOCKER.format(log=log, saved=saved))
    kept = tmp_path / "cache" / "distserve" / "images" / "archives"
    (kept / "layout-of-a-killed-build").mkdir(parents=True)
    for day in range(4):
        (kept / f"gateway-{day}.tar").write_text("old")
        os.utime(kept / f"gateway-{day}.tar", (day, day))

    context, quiet = Context(checkout), Progress(io.StringIO())
    made = archives(("gateway", "engine"), quiet, context=context)

    assert archive.Image(made["gateway"]).name == "docker.io/distserve/gateway:1.2"
    assert {path.name for path in kept.iterdir()} == {
        made["gateway"].name,
        made["engine"].name,
        "gateway-3.tar",
    }
    said = log.read_text()
    assert "--target=gateway --tag=docker.io/distserve/gateway:1.2" in said
    assert archives(("gateway",), quiet, context=context) == {"gateway": made["gateway"]}
    assert log.read_text() == said
    tagged = Context(checkout, tag="main-1")
    (mine,) = archives(("gateway",), quiet, context=tagged).values()
    assert archive.Image(mine).name == "docker.io/distserve/gateway:main-1"
    assert "--tag=docker.io/distserve/gateway:main-1" in log.read_text()
    said = log.read_text()
    (checkout / "source" / "code.py").write_text("edited")
    assert archives(("gateway",), quiet, context=context)["gateway"] != made["gateway"]
    assert log.read_text() != said


def test_a_machine_that_cannot_build_is_told_what_to_install(
    programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("mmdebstrap")
    with pytest.raises(Unavailable, match="--no-install-recommends buildah "):
        install_packages("buildah", "mmdebstrap")


def test_the_local_base_is_kept_under_what_it_is_made_of(tmp_path: Path) -> None:
    base = LocalBase(tmp_path)
    assert base.name == f"localhost/distserve-base:{base.key}"
    (tmp_path / f"base-{base.key}.tar").write_text("made before")
    assert base.tree(Progress(io.StringIO())).read_text() == "made before"


def test_a_tag_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["build", "--tag", "a b"])
    assert ended.value.code == 2
    assert "'a b' is no tag" in capsys.readouterr().err


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["build", "gatway"])
    assert ended.value.code == 2
    assert "no target gatway; there are operator, gateway" in capsys.readouterr().err


def test_it_needs_nothing_installed() -> None:
    """As docs/install.md says: no virtual environment."""
    words = [sys.executable, "-I", "-S", "-c", STANDARD_LIBRARY_ALONE, str(CHECKOUT)]
    subprocess.run(words, check=True, timeout=60)


STANDARD_LIBRARY_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import tools.images.__main__
"""
