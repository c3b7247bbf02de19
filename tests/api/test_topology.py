"""Where units go, how they are kept there, and what is expected of the links between them."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.api.manifests import document, refused, written

from distserve.api.fabric import RATED
from distserve.api.loading import load_deployment

ROOT = Path(__file__).resolve().parents[2]
LEVELS = [
    {"name": "nvlink", "nodeLabel": "nvidia.com/gpu.clique"},
    {"name": "zone", "nodeLabel": "topology.kubernetes.io/zone"},
]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"topology": {"packWithin": "nvlink"}}, "packWithin names no level"),
        ({"topology": {"levels": LEVELS, "packWithin": "rack"}}, "packWithin names no level"),
        ({"topology": {"levels": [LEVELS[0]] * 2}}, "two levels have one name: name each"),
        ({"topology": {"levels": LEVELS, "preset": "AWS"}}, "preset brings its own levels"),
        ({"topology": {"levels": LEVELS, "expectedBandwidth": {"rack": "1G"}}}, "names no level"),
        ({"topology": {"expectedBandwidth": {"nvlink": "1G"}}}, "names no level"),
        (
            {"topology": {"preset": "GKE", "expectedBandwidth": {"nvlink": "1G"}}},
            "preset GKE has the levels node, leaf, spine, zone: expectedBandwidth names others",
        ),
        (
            {"topology": {"expectedBandwidth": {"node": "fast"}}},
            "topology.expectedBandwidth",
        ),
        ({"topology": {"fabricRequired": True}}, "fabricRequired needs to know what to measure"),
        (
            {"topology": {"levels": LEVELS, "packWithin": "zone", "fabricRequired": True}},
            "fabricRequired needs to know what to measure",
        ),
        ({"topology": {"preset": "GKE", "packWithin": "nvlink"}}, "GKE has the levels leaf, spine"),
        ({"topology": {"enforcement": "Preferred"}}, "Preferred says how packWithin is meant"),
        (
            {"topology": {"levels": LEVELS, "packWithin": "zone", "relaxAfter": "1m"}},
            "relaxAfter belongs to enforcement Preferred",
        ),
        (
            {"topology": {"repackIdleAfter": "1m"}},
            "repackIdleAfter belongs to repack WhenIdle",
        ),
        ({"topology": {"repack": "Always"}}, "topology.repack"),
        ({"topology": {"levels": [{"name": "a", "nodeLabel": "no label"}]}}, "levels[0].nodeLabel"),
        ({"rollout": {"maxSurgeUnits": 0}}, "both 0, so no unit could ever be replaced: set one"),
        ({"rollout": {"whenFull": "Hope"}}, "spec.rollout.whenFull"),
        ({"restart": {"budget": 0}}, "spec.restart.budget"),
    ],
)
def test_mistakes_in_how_it_is_kept(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, document(**change))


def test_levels_are_given_or_the_presets(tmp_path: Path) -> None:
    def topology(**fields: Any) -> Any:
        return load_deployment(written(tmp_path, document(topology=fields))).spec.topology

    given = topology(levels=LEVELS, packWithin="zone", enforcement="Preferred")
    assert [level.name for level in given.resolved_levels] == ["nvlink", "zone"]
    assert given.relax_after_seconds == 300
    assert topology(repack="WhenIdle").repack_idle_seconds == 300
    assert topology(repack="WhenIdle", repackIdleAfter="20m").repack_idle_seconds == 1200
    preset = topology(preset="NVIDIA", packWithin="nvlink").resolved_levels
    assert [level.model_dump(by_alias=True) for level in preset] == LEVELS


def test_a_pair_should_reach_what_its_tightest_known_level_gives(tmp_path: Path) -> None:
    def expected(accelerator: str, *shared: str, **topology: Any) -> Any:
        written_down = document(topology=topology, accelerator={"type": accelerator})
        spec = load_deployment(written(tmp_path, written_down)).spec
        return spec.expected_bandwidth(shared)

    assert expected("GPU", "node", "nvlink", "zone", levels=LEVELS) == ("nvlink", 150e9)
    assert expected("GPU", "zone", levels=LEVELS) == ("zone", 312.5e6)
    assert expected("GPU", "node") is None
    assert expected("CPU", "node", "nvlink", "zone", levels=LEVELS) is None
    asked = {"levels": LEVELS, "expectedBandwidth": {"zone": "2G", "node": "4Gi"}}
    assert expected("CPU", "node", "nvlink", "zone", **asked) == ("node", 4 << 30)
    assert expected("CPU", "nvlink", "zone", **asked) == ("zone", 2e9)
    assert expected("GPU", "nvlink", "zone", **asked) == ("nvlink", 150e9)


def test_what_is_required_of_the_fabric_is_known(tmp_path: Path) -> None:
    required = {"preset": "NVIDIA", "packWithin": "nvlink", "fabricRequired": True}
    gpu = document(topology=required, accelerator={"type": "GPU"})
    assert load_deployment(written(tmp_path, gpu)).spec.topology.fabric_required
    assert "needs to know" in refused(tmp_path, document(topology=required))
    asked = required | {"expectedBandwidth": {"nvlink": "1G"}}
    assert load_deployment(written(tmp_path, document(topology=asked))).spec.topology
    colocated = document(topology=asked, strategy={"name": "Colocated"}, hybrid={})
    for role in ("prefill", "decode"):
        del colocated["spec"][role]
    assert "fabricRequired is about links between" in refused(tmp_path, colocated)


def test_the_page_about_placement_has_the_table_of_expectations() -> None:
    page = (ROOT / "docs" / "placement.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {
        level: row[1:3] for row in rows if len(row) == 4 for level in re.findall("`(.*?)`", row[0])
    }
    for level, rated in RATED.items():
        assert told[level] == [in_words(rated.bytes_per_second), in_words(rated.expected)]


def in_words(rate: float) -> str:
    unit, text = (1e9, "GB/s") if rate >= 1e9 else (1e6, "MB/s")
    return f"{rate / unit:.3g} {text}"
