"""Forecasts as plain data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.forecast.cost import GraphCost, Work, total
from benchmarks.forecast.roofline import SHORT_SECONDS
from deploy.bundle.folder import Bundle
from deploy.forecast.predict import NOTE, Prediction
from deploy.text import megabytes, table


def as_data(bundle: Bundle, costs: dict[str, GraphCost], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Costs and forecasts as plain data, for JSON; seconds, FLOPs and bytes."""
    return {
        "bundle": str(bundle.folder),
        "note": NOTE,
        "graphs": {
            name: {
                "multiply_adds": cost.multiply_adds,
                "flops": cost.flops,
                "weight_bytes": cost.weight_bytes,
                "activation_bytes": cost.activation_bytes,
                "uncounted": cost.uncounted,
                "kinds": {kind: {"operators": count, **_work_data(work)} for kind, (count, work) in cost.by_kind().items()},
            }
            for name, cost in costs.items()
        },
        "predictions": [
            {
                "tier": p.tier,
                "target": p.target,
                "processors": p.description,
                "efficiencies": list(p.sources),
                "picture_seconds": p.seconds,
                "range_seconds": list(p.range_seconds),
                "bounds": p.shares("bounds"),
                "placement": p.shares("placement"),
                "graphs": {
                    g.name: {
                        "runs": g.runs,
                        "seconds": g.time.seconds,
                        "actual_over_predicted": list(g.time.actual_over_predicted),
                        "bounds": g.time.bounds,
                        "placement": g.time.placement,
                        "operators": g.time.placed,
                    }
                    for g in p.graphs
                },
            }
            for p in predictions
        ],
    }


def _work_data(work: Work) -> dict[str, int]:
    return {
        "multiply_adds": work.multiply_adds,
        "flops": work.flops,
        "weight_bytes": work.weight_bytes,
        "activation_bytes": work.activation_bytes,
    }


def render(bundle: Bundle, costs: dict[str, GraphCost], predictions: Sequence[Prediction]) -> str:
    """Costs and forecasts as text."""
    rows: list[tuple[str, ...]] = [("graph", "multiply-adds", "FLOPs", "weights read", "activations moved")]
    for name, cost in costs.items():
        moved = megabytes(cost.weight_bytes), megabytes(cost.activation_bytes)
        rows.append((name, _count(cost.multiply_adds), _count(cost.flops), *moved))
    runs = {graph.name: graph.runs for graph in predictions[0].graphs} if predictions else {}
    whole = total(work for name, cost in costs.items() for work in runs.get(name, 0) * [_work(cost)])
    figures = _count(whole.multiply_adds), _count(whole.flops), megabytes(whole.weight_bytes), megabytes(whole.activation_bytes)
    rows.append(("a picture", *figures))
    lines = [f"bundle {bundle.folder}: one run of each graph (a multiply-add is two FLOPs)", "", *table(rows)]
    lines += [
        f"not counted: {count} of {what} in {name}" for name, cost in costs.items() for what, count in cost.uncounted.items()
    ]
    for prediction in predictions:
        lines += ["", *_render(prediction)]
    return "\n".join([*lines, "", NOTE])


def _render(prediction: Prediction) -> list[str]:
    low, high = prediction.range_seconds
    rows: list[tuple[str, ...]] = [("graph", "runs", "one run", "range", "bound by", "where")]
    for graph in prediction.graphs:
        time = graph.time
        between = " to ".join(_time(time.seconds * side) for side in time.actual_over_predicted)
        rows.append((graph.name, str(graph.runs), _time(time.seconds), between, _percent(time.bounds), _percent(time.placement)))
    spread = f"{_time(low)} to {_time(high)}"
    return [
        f"{prediction.tier}, {prediction.target}: a picture in {_time(prediction.seconds)}, predicted; {spread}",
        f"  {prediction.description}",
        *(f"  {line}" for line in table(rows)),
        *(["  under 1 ms a forecast is the order of magnitude at best"] if _short(prediction) else []),
        *(f"  efficiency: {source}" for source in prediction.sources),
    ]


def _short(prediction: Prediction) -> bool:
    return any(graph.time.seconds < SHORT_SECONDS for graph in prediction.graphs)


def _work(cost: GraphCost) -> Work:
    return total(operator.work for operator in cost.operators)


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)


def _count(number: int) -> str:
    """Many operations, as people read them.

    >>> _count(2_500_000_000), _count(31_000)
    ('2.50 G', '0.03 M')
    """
    for unit, size in (("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e6:.2f} M"


def _time(seconds: float) -> str:
    """A time with its unit.

    >>> _time(0.00123), _time(12.34)
    ('1.23 ms', '12.3 s')
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
