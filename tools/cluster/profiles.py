"""What a test may ask of a cluster, and who may provide it."""

import enum


class Profile(enum.StrEnum):
    """`control-plane` schedules on fake nodes; on `real` nodes pods really run."""

    CONTROL_PLANE = "control-plane"
    REAL = "real"


class Provider(enum.StrEnum):
    """`given` by DISTSERVE_KUBECONFIG, made by `kind` in Docker, or `local` processes of ours."""

    GIVEN = "given"
    KIND = "kind"
    LOCAL = "local"
