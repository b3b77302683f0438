"""The report's charts as static SVG: perception against distortion, noise curves, groups with intervals.

A backend keeps its colour and its shape through all charts; control arms are grey. Colours are told apart by
colour-blind readers and reach a contrast of 3:1 on white; shapes and labels say the same without colour.
"""

import re
from collections.abc import Iterable
from typing import Any

import altair as alt
import pandas as pd
from markupsafe import escape

from harness.score import BASELINE
from reports.findings import DISTORTION
from reports.generation import overall
from reports.load import Run
from reports.numbers import count

COLOURS = ("#0072B2", "#C04E00", "#00805E", "#8E3B86", "#5B4A00", "#1B1464", "#B3123F")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DIRECT_LABELS = 5  # more names than this run into each other; the legend has them
GREY = "#666666"
INK, LINES = "#1a1a1a", "#e4e4e4"
FONT = "Helvetica, Arial, sans-serif"


def charts(run: Run) -> dict[str, str]:
    """Every chart that the tables allow, as SVG text by the name that tables refer to."""
    found = {"perception-distortion": _scatter(run), "precision-recall": _precision_recall(run)}
    found |= {"best-of": _best_of(run)}
    found |= {f"noise-{m}": _noise(run, m) for m in (run.headline, DISTORTION)}
    attributes = dict.fromkeys(run.table("groups", run.headline)["attribute"])
    found |= {f"groups-{a}": _groups(run, a) for a in attributes}
    found |= {f"robustness-{m}": _curves(run, m) for m in (run.headline, DISTORTION)}
    titles = {"perception-distortion": f"{run.title(run.headline)} against {run.title(DISTORTION)} of each backend"}
    titles |= {"precision-recall": "Precision against recall of each generator"}
    titles |= {"best-of": "LPIPS of the best of the first outputs of each backend"}
    titles |= {f"noise-{m}": f"{run.title(m)} of each backend under growing noise" for m in (run.headline, DISTORTION)}
    titles |= {f"groups-{a}": f"{run.title(run.headline)} of each backend by {a}" for a in attributes}
    titles |= {
        f"robustness-{m}": f"{run.title(m)} of each backend by severity of each corruption"
        for m in (run.headline, DISTORTION)
    }
    return {
        name: _svg(chart, titles[name], f"chart{i}")
        for i, (name, chart) in enumerate(found.items())
        if chart is not None
    }


def _svg(chart: alt.TopLevelMixin, title: str, ident: str) -> str:
    """The chart as SVG for inlining: role, title, and identifiers that no other chart of the page has."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{ident}-\1"', svg)
    svg = svg.replace("url(#", f"url(#{ident}-").replace('xlink:href="#', f'xlink:href="#{ident}-')
    head, body = svg.split(">", 1)
    label = f'role="img" aria-labelledby="{ident}-title"'
    return f'{head.replace("<svg", f"<svg {label}", 1)}><title id="{ident}-title">{escape(title)}</title>{body}'


def _styles(run: Run) -> dict[str, tuple[str, str]]:
    """Colour and shape of each backend, fixed by its place in run.json."""
    controls = [label for label in run.labels if run.is_control(label)]
    own = {x: (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i, x in enumerate(run.compared)}
    return own | {x: (GREY, SHAPES[-1 - i % len(SHAPES)]) for i, x in enumerate(controls)}


def _encode(run: Run, present: Iterable[str]) -> tuple[alt.Color, alt.Shape]:
    styles, here = _styles(run), set(present)
    domain = [label for label in run.labels if label in here]
    colour = alt.Scale(domain=domain, range=[styles[x][0] for x in domain])
    shape = alt.Scale(domain=domain, range=[styles[x][1] for x in domain])
    legend = alt.Legend(title=None, orient="top", symbolSize=80, symbolOpacity=1, labelLimit=240, columns=5)
    return (
        alt.Color("backend:N", scale=colour, legend=legend),
        alt.Shape("backend:N", scale=shape, legend=legend),
    )


def _finish(chart: Any, *, height: int) -> alt.TopLevelMixin:  # noqa: ANN401 - any Altair chart
    return _configured(chart.properties(width=620, height=height))


def _configured(chart: Any) -> alt.TopLevelMixin:  # noqa: ANN401 - as above
    done: alt.TopLevelMixin = (
        chart.configure(font=FONT, background="white", padding=4)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelColor=INK,
            titleColor=INK,
            gridColor=LINES,
            labelLimit=240,
            labelFlush=False,
            tickCount=8,
        )
        .configure_legend(labelFontSize=12, labelColor=INK)
        .configure_view(stroke=None)
    )
    return done


def _axis_title(run: Run, metric: str) -> str:
    return f"{run.title(metric)}, {'higher' if run.higher_is_better(metric) else 'lower'} is better"


def _scatter(run: Run) -> alt.TopLevelMixin | None:
    columns = ["backend", "mean", "low", "high"]
    x, y = run.table("summary", DISTORTION)[columns], run.table("summary", run.headline)[columns]
    data = x.merge(y, on="backend", suffixes=("_x", "_y"))
    data = data.replace([float("inf"), float("-inf")], float("nan")).dropna()
    if data.empty:
        return None
    colour, shape = _encode(run, data["backend"])
    across = alt.X("mean_x:Q", title=_axis_title(run, DISTORTION), scale=alt.Scale(zero=False, padding=40))
    up = alt.Y("mean_y:Q", title=_axis_title(run, run.headline), scale=alt.Scale(zero=False, padding=24))
    base = alt.Chart(data).encode(color=colour)
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("low_x:Q", title=_axis_title(run, DISTORTION)), x2="high_x:Q", y=up
        ),
        base.mark_rule(strokeWidth=1.5).encode(
            y=alt.Y("low_y:Q", title=_axis_title(run, run.headline)), y2="high_y:Q", x=across
        ),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=across, y=up, shape=shape),
        base.mark_text(align="left", dx=9, dy=-9, fontSize=12, limit=150).encode(x=across, y=up, text="backend:N"),
    ]
    return _finish(alt.layer(*layers[: 4 if len(data) <= DIRECT_LABELS else 3]), height=300)


def _best_of(run: Run) -> alt.TopLevelMixin | None:
    data = run.table("best_of")[["backend", "k", "value", "low", "high"]]
    if data.empty:
        return None
    colour, shape = _encode(run, data["backend"])
    title, scale = "LPIPS of the best, lower is better", alt.Scale(zero=False)
    across = alt.X("k:Q", title="outputs of an input", axis=alt.Axis(format="d", values=sorted(set(data["k"]))))
    base = alt.Chart(data).encode(x=across, color=colour)
    layers = [
        base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=alt.Y("value:Q", title=title, scale=scale)),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=alt.Y("value:Q", title=title, scale=scale), shape=shape
        ),
    ]
    return _finish(alt.layer(*layers), height=200)


def _precision_recall(run: Run) -> alt.TopLevelMixin | None:
    """Of all classes together, by the first network."""
    rows = overall(run)
    columns = ["backend", "value", "low", "high"]
    x, y = (rows.loc[rows["measure"] == measure, columns].dropna() for measure in ("recall", "precision"))
    data = x.merge(y, on="backend", suffixes=("_x", "_y"))
    if data.empty:
        return None
    colour, shape = _encode(run, data["backend"])
    scale, end = alt.Scale(domain=[0, 1]), {"x": "recall: how much of the real set is made", "y": "precision"}
    across, up = alt.X("value_x:Q", title=end["x"], scale=scale), alt.Y("value_y:Q", title=end["y"], scale=scale)
    base = alt.Chart(data).encode(color=colour)
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low_x:Q", title=end["x"], scale=scale), x2="high_x:Q", y=up),
        base.mark_rule(strokeWidth=1.5).encode(
            y=alt.Y("low_y:Q", title=end["y"], scale=scale), y2="high_y:Q", x=across
        ),
        base.mark_point(filled=True, size=80, opacity=1).encode(x=across, y=up, shape=shape),
    ]
    return _finish(alt.layer(*layers), height=300)


def _noise(run: Run, metric: str) -> alt.TopLevelMixin | None:
    data = run.table("noise", metric)[["backend", "sigma", "mean", "low", "high"]]
    data = data[data["backend"].isin([*run.compared, BASELINE])]
    data = data.replace([float("inf"), float("-inf")], float("nan")).dropna()
    if data.empty:
        return None
    colour, shape = _encode(run, data["backend"])
    sigma = alt.X("sigma:Q", title="noise σ")
    title = _axis_title(run, metric)
    base = alt.Chart(data).encode(x=sigma, color=colour)
    up = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
    layers = [
        base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=title, scale=alt.Scale(zero=False)), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=up),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=up, shape=shape),
    ]
    return _finish(alt.layer(*layers), height=250)


def _curves(run: Run, metric: str) -> alt.TopLevelMixin | None:
    """A small panel for each corruption, all with the same axes."""
    data = run.table("corruptions", metric)[["backend", "corruption", "severity", "mean", "low", "high"]]
    data = data[data["backend"].isin([*run.compared, BASELINE])].dropna()
    if data.empty:
        return None
    order = [str(name).replace("_", " ") for name in dict.fromkeys(data["corruption"])]
    data = data.assign(corruption=data["corruption"].str.replace("_", " "))
    colour, shape = _encode(run, data["backend"])
    title, axis = _axis_title(run, metric), alt.Axis(values=sorted(set(data["severity"])), format="d")
    base = alt.Chart(data).encode(x=alt.X("severity:Q", title=None, axis=axis), color=colour)
    low, mean = (
        alt.Y(f"{end}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
        for end in ("low", "mean")
    )
    layers = [
        base.mark_area(opacity=0.18).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=mean),
        base.mark_point(filled=True, size=30, opacity=1).encode(y=mean, shape=shape),
    ]
    panel = alt.layer(*layers).properties(width=125, height=80)
    header = alt.Header(title=None, labelFontSize=12, labelColor=INK, labelPadding=2)
    facets = panel.facet(alt.Facet("corruption:N", sort=order, header=header), columns=4, spacing=8)
    return _configured(facets.properties(title=alt.Title(f"{title}, by severity", fontSize=12, fontWeight="normal")))


def _groups(run: Run, attribute: str) -> alt.TopLevelMixin | None:
    data = run.table("groups", run.headline)
    data = data[(data["attribute"] == attribute) & data["backend"].isin(run.compared)].copy()
    data["label"] = data["group"].map(_group_labels(data))
    judged = data[data["mean"].notna()][["backend", "label", "mean", "low", "high"]]
    if judged.empty:
        return None
    colour, shape = _encode(run, judged["backend"])
    shown = [label for label in run.labels if label in set(judged["backend"])]
    place = alt.Y(
        "label:N",
        title=None,
        scale=alt.Scale(domain=list(dict.fromkeys(data["label"]))),
        axis=alt.Axis(grid=True, tickBand="extent", ticks=False, domain=False),
    )
    offset = alt.YOffset("backend:N", scale=alt.Scale(domain=shown))
    title = _axis_title(run, run.headline)
    base = alt.Chart(judged).encode(y=place, yOffset=offset, color=colour)
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1).encode(
            x=alt.X("mean:Q", title=title, scale=alt.Scale(zero=False)), shape=shape
        ),
    ]
    return _finish(alt.layer(*layers), height=_height(data, shown))


def _height(data: pd.DataFrame, shown: list[str]) -> int:
    return int(data["label"].nunique() * max(22, 11 * len(shown) + 4))


def _group_labels(data: pd.DataFrame) -> dict[str, str]:
    """Each group's axis label with its n, saying where that is too few."""
    largest = data.groupby("group", sort=False)["n"].max()
    judged = data[data["mean"].notna()]["group"].unique()
    return {str(g): f"{g} (n = {count(n)}{'' if g in judged else ', insufficient'})" for g, n in largest.items()}
