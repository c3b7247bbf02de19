"""The images, built once per session by whatever builds here."""

import sys

import pytest
from tools.cluster.fixtures import or_skip
from tools.cluster.progress import Progress
from tools.images.__main__ import print_sizes
from tools.images.archive import Image
from tools.images.build import archives


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> dict[str, Image]:
    """Those that CI builds, by target; their sizes are printed."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled(), or_skip("no builder of images"):
        sys.stderr.write("\n")
        made = archives(progress=Progress())
        print_sizes(made)
    return {target: Image(archive) for target, archive in made.items()}
