"""`python -m tools.images build [TARGET...]`: the project's container images as OCI archives."""

import argparse
import re
import shutil
import sys
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.images.archive import Image
from tools.images.build import archives
from tools.images.context import TARGETS, Context


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.images", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build what is not current and print sizes")
    build.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (all)")
    build.add_argument("--base", default="", help="base image, instead of the usual one")
    build.add_argument("--tag", type=_tag, help="of the images: one of your own for each build")
    build.add_argument("--output", type=Path, help="copy the archives into this folder")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    try:
        context = Context(tag=chosen.tag or "")
        made = archives(chosen.targets or TARGETS, base=chosen.base, context=context)
    except ClusterError as failed:
        print(f"images: {failed}", file=sys.stderr)
        return 1
    if chosen.output is not None:
        chosen.output.mkdir(parents=True, exist_ok=True)
        made = {
            target: Path(shutil.copy2(archive, chosen.output / f"{target}.tar"))
            for target, archive in made.items()
        }
    print_sizes(made)
    return 0


def _tag(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no tag: letters, digits, _, . and - are")
    return text


def print_sizes(made: dict[str, Path]) -> None:
    """A line per image; its size is that of the unpacked layers."""
    for target, archive in made.items():
        image = Image(archive)
        layers = " + ".join(f"{layer.size_bytes / 1e6:.1f}" for layer in image.layers)
        print(f"{target:9} {image.size_bytes / 1e6:8.1f} MB = {layers}  {image.name}  {archive}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
