"""`distserve` of a later version, whose builders render pods with one variable more."""

import sys
from typing import Any

from distserve.cli.main import main
from distserve.resources import revisions

VARIABLE = "FROM_A_LATER_VERSION"


def later(build: Any) -> Any:
    def built(*args: Any) -> Any:
        template = build(*args)
        for container in template["spec"]["containers"]:
            container.setdefault("env", []).append({"name": VARIABLE, "value": "yes"})
        return template

    return built


if __name__ == "__main__":
    for name in ("engine_template", "gateway_template"):
        setattr(revisions, name, later(getattr(revisions, name)))
    sys.exit(main())
