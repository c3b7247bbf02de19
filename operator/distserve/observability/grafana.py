"""Dashboards as Grafana's JSON, by its own types; nothing else here needs their package."""

import json
import string
from typing import Final

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    GridPos,
    VariableRefresh,
    VariableSort,
)

from distserve.observability.panels import Dashboard, Form, Panel, Query, Variable

COLUMNS: Final = 24
HEIGHT: Final = 8
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "distserve"


def dashboard_json(shown: Dashboard) -> str:
    """For import, provisioning, or a ConfigMap that Grafana's sidecar reads."""
    built = (
        dashboard.Dashboard(shown.title)
        .uid(shown.uid)
        .description(shown.description)
        .tags([TAG])
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("DistServe")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for variable in shown.variables:
        built.with_variable(_variable(variable))
    y = number = 0
    for row in shown.rows:
        # Open rows keep their panels beside them: in the row itself they would be folded away.
        number += 1
        built.with_row(dashboard.Row(row.title).id(number).grid_pos(GridPos(1, COLUMNS, 0, y)))
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            number += 1
            built.with_panel(_panel(panel).id(number).grid_pos(GridPos(HEIGHT, panel.width, x, y)))
            x += panel.width
        y += HEIGHT
    document = json.loads(JSONEncoder().encode(built.build()))
    # Grafana 10.1 has defaults for these two; 11 and later no longer know them.
    del document["style"]
    for one in document["templating"]["list"]:
        del one["id"]
    return json.dumps(document, indent=1) + "\n"


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .datasource(SOURCE)
        .query(variable.query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    made = _number(panel) if panel.form is Form.NUMBER else _lines(panel)
    made.title(panel.title).datasource(SOURCE).unit(panel.unit).min(0)
    if panel.description:
        made.description(panel.description)
    if panel.without:
        made.no_value(panel.without)
    if panel.most is not None:
        made.max(panel.most)
    for name, query in zip(string.ascii_uppercase, panel.queries, strict=False):
        asked = (
            prometheus.Dataquery()
            .datasource(SOURCE)
            .ref_id(name)
            .expr(query.expression)
            .legend_format(query.legend)
        )
        made.with_target(asked.instant() if query.instant else asked)
        if query.target and isinstance(made, timeseries.Panel):
            made.override_by_query(name, _dashed(query))
    return made


def _number(panel: Panel) -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .draw_style(GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(60 if panel.form is Form.STACKED else 8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.form is Form.STACKED:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return made


def _dashed(query: Query) -> list[DynamicConfigValue]:
    return [
        DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
        DynamicConfigValue("custom.fillOpacity", 0),
        DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "text"}),
    ]
