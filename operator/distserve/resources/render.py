"""A deployment as Kubernetes objects: what the operator applies, `render` prints and `up` runs."""

from distserve.api.deployment import DistServeDeployment
from distserve.resources import gangs, naming
from distserve.resources.access import access_objects
from distserve.resources.affinity import Placement
from distserve.resources.fabric import claims, compute_domain
from distserve.resources.gateways import gateway_objects
from distserve.resources.instances import disruption_budget, headless_service, stateful_set
from distserve.resources.monitoring import monitoring_objects
from distserve.resources.network import network_objects
from distserve.resources.objects import Object
from distserve.resources.revisions import Revision, make_revision
from distserve.resources.settings import RenderSettings


def render(deployment: DistServeDeployment, settings: RenderSettings) -> list[Object]:
    """All objects, in the order in which they are applied, of a revision made now and without
    placement. Raises RenderError.

    The numbers are the spec's: in mode Auto `planned.with_plan` puts the plan's there before. The
    operator keeps its revisions in ControllerRevisions besides.
    """
    revision = make_revision(deployment, settings)
    return [
        *shared_objects(deployment, settings, revision),
        *(
            found
            for unit in naming.units(deployment)
            for found in unit_objects(deployment, unit, revision)
        ),
    ]


def shared_objects(
    deployment: DistServeDeployment, settings: RenderSettings, revision: Revision
) -> list[Object]:
    """All that is there once per deployment. The key's Secret is among them only where the
    settings have a key: an operator makes it once, by `access.key_secret`."""
    return [
        *access_objects(deployment, settings),
        *network_objects(deployment),
        headless_service(deployment),
        *gateway_objects(deployment, revision.gateway),
        *monitoring_objects(deployment, settings),
    ]


def unit_objects(
    deployment: DistServeDeployment,
    unit: str,
    revision: Revision,
    placement: Placement | None = None,
    protected: bool | None = None,
) -> list[Object]:
    """One unit: its instances, what their pods claim, their group, and its disruption budget.

    `protected`: whether evictions leave it whole. None, where nobody knows how the units are: the
    first minAvailableUnits units are.
    """
    if protected is None:
        count = deployment.spec.disruption.min_available_units
        protected = unit in naming.units(deployment)[:count]
    return [
        disruption_budget(deployment, unit, protected),
        *([gangs.pod_group(deployment, unit, revision)] if gangs.is_of(revision) else []),
        *(
            claims.template(deployment, unit, role, devices)
            for role, devices in revision.claims.items()
        ),
        *(
            [compute_domain.compute_domain(deployment, unit)]
            if compute_domain.is_asked_by(revision.templates.values())
            else []
        ),
        *(
            stateful_set(deployment, instance, revision, placement)
            for instance in naming.instances(deployment, unit, revision.unit)
        ),
    ]
