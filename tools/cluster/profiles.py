"""What a test may ask of a cluster, and who may provide it."""

import enum


class Profile(enum.StrEnum):
    """`control-plane` schedules on fake nodes; on `real` nodes pods really run."""

    CONTROL_PLANE = "control-plane"
    REAL = "real"


class Release(enum.StrEnum):
    """Of Kubernetes: the one that all tests have, or a later one for what that lacks."""

    PINNED = "pinned"
    NEXT = "next"


class Provider(enum.StrEnum):
    """`given` by DISTSERVE_KUBECONFIG, made by `kind` in Docker, or `local` processes of ours."""

    GIVEN = "given"
    KIND = "kind"
    LOCAL = "local"
