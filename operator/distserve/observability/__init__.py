"""Dashboards and alerting rules as data: the one source of what Grafana and Prometheus are given.

`distserve observability` writes it out, the chart ships it, and `distserve.resources` renders a
deployment's rules from it.
"""
