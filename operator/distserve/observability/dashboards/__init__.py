"""The dashboards, one module each."""

from distserve.observability.dashboards.balance import BALANCE
from distserve.observability.dashboards.operator import OPERATOR
from distserve.observability.dashboards.service import SERVICE
from distserve.observability.dashboards.topology import TOPOLOGY
from distserve.observability.dashboards.transfer import TRANSFER

DASHBOARDS = (SERVICE, BALANCE, TRANSFER, TOPOLOGY, OPERATOR)
