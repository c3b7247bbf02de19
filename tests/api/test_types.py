"""Manifests as users write them: what is taken, and what each mistake is answered with."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.manifests import document, refused, written

from distserve.api.deployment import DistServeDeployment, from_document
from distserve.api.durations import parse_duration
from distserve.api.loading import ManifestError, load_deployment, load_deployments
from distserve.api.quantities import format_bytes, parse_bytes, parse_quantity
from distserve.api.roles import Parallelism
from distserve.api.strategies import Role

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
HUB = {"huggingFace": {"repository": "org/model"}}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_samples_load(path: Path) -> None:
    assert load_deployments(path)


def test_defaults_are_kubernetes_like(tmp_path: Path) -> None:
    deployment = load_deployment(written(tmp_path, document()))
    spec = deployment.spec
    assert (deployment.namespace, spec.units, spec.gateway.replicas) == ("default", 1, 2)
    assert spec.strategy.name == "Disaggregated"
    assert spec.sections == {Role.PREFILL, Role.DECODE}
    assert spec.decode and spec.decode.parallelism.ranks == 1


def test_document_round_trip(tmp_path: Path) -> None:
    found = document(units=3, slo={"ttft": "250ms", "tpot": "0.1s"}, kvTransfer={"blockTokens": 8})
    deployment = load_deployment(written(tmp_path, found))
    again = DistServeDeployment.model_validate(deployment.document())
    assert again == deployment
    assert deployment.document()["spec"]["kvTransfer"] == {"blockTokens": 8}


def test_server_side_metadata_is_let_through() -> None:
    found = document()
    found["metadata"] |= {"uid": "u", "resourceVersion": "1", "managedFields": [{}]}
    assert from_document(found).metadata.uid == "u"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prefil": {}}, "spec.prefil: unknown field; did you mean prefill?"),
        ({"kvTransfer": {"blockToken": 1}}, "spec.kvTransfer.blockToken: unknown field; did you"),
        ({"decode": {"zebra": 1}}, "spec.decode.zebra: unknown field; known are instancesPerUnit"),
        ({"units": -1}, "spec.units: input should be greater than or equal to 0 (got -1)"),
        ({"strategy": {"name": "Guessing"}}, "(got 'Guessing')"),
        ({"model": {"id": "m"}}, "spec.model.source: missing"),
        ({"model": {"id": "m", "source": {}}}, "spec.model.source: exactly one source"),
        (
            {"model": {"id": "m", "source": {"builtin": "tiny", "hostPath": "/m"}}},
            "spec.model.source: exactly one source is needed",
        ),
        ({"model": {"id": "m", "source": {"imagePath": "/tmp/m"}}}, "imagePath lies under"),
        (
            {"model": {"id": "m", "source": {"builtin": "tiny"}, "cache": {"claimName": "c"}}},
            "cache is where downloads go, and this source needs none",
        ),
        (
            {"model": {"id": "m", "source": HUB, "cache": {"claimName": "c", "ephemeral": {}}}},
            "claimName and ephemeral are two places",
        ),
        ({"model": {"id": "m", "source": {"huggingFace": {"repository": "a/b/c"}}}}, "repository"),
        ({"model": {"id": "m", "source": {"hostPath": "models"}}}, "spec.model.source.hostPath"),
        ({"model": {"id": "a b", "source": {"builtin": "tiny"}}}, "spec.model.id"),
        ({"model": {"id": "m", "source": {"builtin": "tiny"}, "dtype": 12}}, "spec.model.dtype"),
        ({"hybrid": {}}, "spec: strategy Disaggregated has no use for the section hybrid: remove"),
        ({"strategy": {"name": "Colocated"}}, "add `hybrid: {}`"),
        (
            {"strategy": {"options": {"chunkTokens": 64}}},
            "options.chunkTokens: Extra inputs are not permitted; Disaggregated takes no options",
        ),
        ({"accelerator": {"type": "CPU", "resourceName": "x/y"}}, "resourceName belongs to type"),
        ({"accelerator": {"kvCache": "1Gi"}}, "cpusPerRank and kvCache belong to type CPU"),
        ({"accelerator": {"type": "CPU", "kvCache": "lots"}}, "spec.accelerator.kvCache"),
        ({"accelerator": {"type": "CPU", "kvCache": "0Mi"}}, "a quantity above zero"),
        ({"prefill": {"acceleratorMemoryUtilization": "0.5"}}, "belongs to accelerator.type GPU"),
        ({"slo": {"ttft": "250", "tpot": "1s"}}, "spec.slo.ttft"),
        ({"slo": {"ttft": "0ms", "tpot": "1s"}}, "a duration above zero"),
        ({"slo": {"ttft": "1s"}}, "spec.slo.tpot: missing"),
        ({"prefill": {"parallelism": {"tensor": 0}}}, "spec.prefill.parallelism.tensor"),
        ({"prefill": {"instancesPerUnit": 65}}, "spec.prefill.instancesPerUnit"),
        ({"kvTransfer": {"transport": "Pigeon"}}, "spec.kvTransfer.transport"),
        ({"kvTransfer": {"lease": "24h"}}, "spec.kvTransfer: lease is not below 24h: lower it"),
        ({"units": 2049}, "spec: all units together have more than 4096 instances: lower units"),
        ({"topology": {"gangTimeout": "99999999h"}}, "spec.topology: gangTimeout is more than 24h"),
        ({"topology": {"reserveAfter": "1ms"}}, "spec.topology: reserveAfter is less than 1s"),
        (
            {"accelerator": {}, "kvTransfer": {"migratorPlacement": "Sidecar"}},
            "a migrator as sidecar cannot reach the engine's GPU",
        ),
        ({"accelerator": {}, "images": {"migrator": "m:1"}}, "is that of a sidecar"),
        ({"planning": {"mode": "Guess"}}, "spec.planning.mode"),
        ({"gateway": {"replicas": 0}}, "spec.gateway.replicas"),
        (
            {"gateway": {"requestTimeout": "24h1s"}},
            "spec.gateway: requestTimeout is more than the 24h that engines take: lower it",
        ),
        ({"prefill": {"podTemplate": {"spec": {"$patch": "delete"}}}}, "$patch is not supported"),
        ({"prefill": {"podTemplate": []}}, "spec.prefill.podTemplate"),
        (
            {
                "strategy": {"name": "Colocated"}, "prefill": None, "decode": None, "hybrid": {},
                "gateway": {"routing": {"minRemotePrefillTokens": 5}},
            },
            "minRemotePrefillTokens belongs to strategy Disaggregated",
        ),
    ],
)  # fmt: skip
def test_mistakes_name_field_and_cure(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, document(**change))


@pytest.mark.parametrize("lease", ["500ms", "2h", "23h59m"])
def test_leases_that_migrators_take(tmp_path: Path, lease: str) -> None:
    """A stored one is not to stop a deployment."""
    spec = load_deployment(written(tmp_path, document(kvTransfer={"lease": lease}))).spec
    assert spec.kv_transfer.lease == lease


LENGTHS = {"mean": 100, "p90": 200}
WORKLOAD = {
    "requestsPerSecond": "4.5",
    "lengths": {"promptTokens": LENGTHS, "outputTokens": LENGTHS},
}
AUTO = {
    "slo": {"ttft": "250ms", "tpot": "100ms"},
    "workload": WORKLOAD,
    "planning": {"mode": "Auto", "maxAccelerators": 8},
}


@pytest.mark.parametrize(
    ("change", "planned"),
    [
        ({}, True),
        ({"planning": {"mode": "Auto", "units": "Planned"}}, True),
        ({"planning": {"mode": "Auto", "units": "Spec"}, "units": 3}, False),
        ({"planning": {"mode": "Manual"}, "units": 3}, False),
    ],
)
def test_whose_number_of_units_counts(
    tmp_path: Path, change: dict[str, Any], planned: bool
) -> None:
    deployment = load_deployment(written(tmp_path, document(**(AUTO | change))))
    assert deployment.spec.planning.plans_units is planned


def test_a_rate_is_a_number_or_a_text(tmp_path: Path) -> None:
    for rate in (3, "4.5", "500m"):
        workload = WORKLOAD | {"requestsPerSecond": rate}
        spec = load_deployment(written(tmp_path, document(workload=workload))).spec
        assert spec.workload and spec.workload.requests_per_second == str(rate)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slo": None}, "planning.mode Auto needs slo and workload"),
        ({"workload": None}, "planning.mode Auto needs slo and workload"),
        ({"units": 2}, "units come from the plan: leave units at 1, or set planning.units: Spec"),
        ({"units": 0}, "units come from the plan"),
        ({"prefill": {"parallelism": {"tensor": 2}}}, "come from the plan in planning.mode Auto"),
        ({"decode": {"instancesPerUnit": 2}}, "come from the plan in planning.mode Auto"),
        ({"planning": {"units": "Planned"}}, "planning.units Planned belongs to mode Auto"),
        ({"planning": {"maxAccelerator": 1}}, "unknown field; did you mean maxAccelerators?"),
        ({"planning": {"hardwareProfile": "/etc/x.json"}}, "spec.planning.hardwareProfile"),
        ({"workload": {}}, "spec.workload: workload needs lengths or trace, and not both"),
        ({"workload": WORKLOAD | {"requestsPerSecond": 4.5}}, 'write decimals as text: "4.5"'),
        ({"workload": WORKLOAD | {"requestsPerSecond": "0"}}, "a quantity above zero"),
        (
            {"workload": {"lengths": {
                "promptTokens": LENGTHS, "outputTokens": {"mean": 9, "p90": 90}
            }}},
            "spec.workload.lengths.outputTokens: p90 must be between mean and 2.27 times it",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_what_is_planned(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, document(**(AUTO | change)))


@pytest.mark.parametrize(
    "name", ["x" * 31, "1tiny", "Tiny", "tiny-", "ti.ny", ""], ids=lambda n: n or "empty"
)
def test_names_that_pods_cannot_have(tmp_path: Path, name: str) -> None:
    assert "metadata.name" in refused(tmp_path, document() | {"metadata": {"name": name}})


def test_several_documents(tmp_path: Path) -> None:
    other = document() | {"metadata": {"name": "other"}}
    path = written(tmp_path, {"kind": "Namespace"}, document(), other)
    assert [d.name for d in load_deployments(path)] == ["tiny", "other"]
    assert load_deployment(path, "other").name == "other"
    with pytest.raises(ManifestError, match=r"2 deployments \(tiny, other\): name one"):
        load_deployment(path)
    with pytest.raises(ManifestError, match="no DistServeDeployment 'third'"):
        load_deployment(path, "third")
    with pytest.raises(ManifestError, match="is there twice"):
        load_deployments(written(tmp_path, other, other))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spec: [unclosed", "no valid YAML in line 2"),
        ("", "no document of kind"),
        ("kind: Pod", "no document of kind"),
        ("just text", "no document of kind"),
        ("kind: DistServeDeployment\nspec: 3\nmetadata: {name: a}", "spec: "),
        ("kind: DistServeDeployment\napiVersion: distserve.io/v2", "apiVersion"),
    ],
)
def test_files_that_are_no_manifests(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=said):
        load_deployments(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent.yaml: No such file"):
        load_deployments(tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"bytes.yaml"):
        load_deployments(tmp_path / "bytes.yaml")


@given(
    hours=st.integers(0, 99), minutes=st.integers(0, 99), ms=st.integers(0, 10_000)
)  # fmt: skip
def test_durations(hours: int, minutes: int, ms: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{ms}ms") == pytest.approx(
        hours * 3600 + minutes * 60 + ms / 1000
    )


@pytest.mark.parametrize("text", ["", "5", "ms", "-1s", "1 s", "1d", "1e3s", "1s\n"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="250ms"):
        parse_duration(text)


@given(count=st.integers(0, 2**60))
def test_bytes_round_trip(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == count


def test_quantities() -> None:
    assert (parse_bytes("64Mi"), parse_bytes("1.5Gi"), parse_bytes("1k")) == (
        67108864, 1610612736, 1000,
    )  # fmt: skip
    assert parse_quantity("500m") * 2 == 1
    assert parse_bytes("1500m") == 2
    for text in ("", "Mi", "1Zi", "-1", "1 Gi"):
        with pytest.raises(ValueError, match="64Mi"):
            parse_quantity(text)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_pods_of_an_instance_are_alike_and_cut_no_stage_askew(
    tensor: int, pipeline: int, most: int
) -> None:
    ranks = tensor * pipeline
    pods = Parallelism(tensor=tensor, pipeline=pipeline).pods(most)
    each, rest = divmod(ranks, pods)
    assert rest == 0 and each <= most
    assert each % tensor == 0 or tensor % each == 0
    fewer = [n for n in range(1, pods) if ranks % n == 0 and ranks // n <= most]
    assert all(ranks // n % tensor and tensor % (ranks // n) for n in fewer)
