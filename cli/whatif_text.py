"""Show a person the result of `cluster whatif`."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from bottleneck.estimate import Interval
from bottleneck.prediction.break_even import BreakEven
from bottleneck.prediction.deployment import Comparison, Outcome, Scenario
from bottleneck.prediction.evaluate import Evaluation
from bottleneck.units import duration_text, rate_text


def evaluation_table(found: Evaluation) -> Table:
    """Return the distribution of the errors over the draws."""
    document = found.to_json()
    table = Table(title=f"{found.sweep}: errors on held-out points over {len(found.draws)} draws")
    table.add_column("")
    for name in ("median", "90th percentile", "largest", "in the 90 % interval"):
        table.add_column(name, justify="right")
    for phase in ("decode", "prefill"):
        errors, inside = document["overall"][f"{phase}_mape"], document["overall"][f"{phase}_coverage"]["mean"]
        numbers = [f"{errors[key]:.1%}" for key in ("median", "p90", "p100")]
        table.add_row(f"{phase} MAPE", *numbers, f"{inside:.0%}")
    return table


def scenario_text(scenario: Scenario) -> str:
    """Return a scenario in one line."""
    split = scenario.split
    parts = [
        f"batch {scenario.batch}, input {scenario.input_tokens}, output {scenario.output_tokens} tokens",
        scenario.served.weights.name,
        f"TP {split.tensor_parallel}, PP {split.pipeline_parallel}, replicas {scenario.replicas}",
        scenario.accelerator.name,
    ]
    if split.link is not None and split.ranks > 1:
        parts.append(f"link {rate_text(split.link.bytes_per_second)}, {duration_text(split.link.latency_seconds)}")
    return "; ".join(parts)


def comparison_table(found: Comparison) -> Table:
    """Return base, change and their ratio, each with its 90 % interval."""
    table = Table(title="prediction, with 90 % intervals")
    for name in ("", "base", "changed", "changed / base"):
        table.add_column(name, justify="left" if not name else "right")
    rows: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("time to first token", "ttft_seconds", "ttft_ratio", duration_text),
        ("time between tokens", "itl_seconds", "itl_ratio", duration_text),
        ("output tokens a second", "tokens_per_second", "throughput_ratio", lambda value: f"{value:.4g}"),
    )
    for title, name, ratio, text in rows:
        table.add_row(
            title,
            _interval(getattr(found.base, name), text),
            _interval(getattr(found.changed, name), text),
            _interval(getattr(found, ratio), lambda value: f"{value:.3g}"),
        )
    return table


def _interval(interval: Interval, text: Callable[[float], str]) -> str:
    return f"{text(interval.median)}\n{text(interval.low)} to {text(interval.high)}"


def parts_table(found: Comparison) -> Table:
    """Return where a step's time goes, before and after."""
    table = Table(title="where the time goes")
    for name in ("", "first token", "each further", "changed: first", "each further"):
        table.add_column(name, justify="left" if not name else "right")
    columns = [
        parts for outcome in (found.base, found.changed) for parts in (outcome.prefill_parts, outcome.decode_parts)
    ]
    for name in columns[0]:
        table.add_row(name, *(_part(parts[name], sum(parts.values())) for parts in columns))
    return table


def _part(seconds: float, whole: float) -> str:
    return f"{duration_text(seconds)} {seconds / whole:4.0%}" if seconds > 0.0005 * whole else "-"


def binds_text(found: Outcome) -> str:
    """Say what binds."""
    if found.prefill_binds == found.decode_binds:
        return f"{found.decode_binds} bind both phases"
    return f"{found.prefill_binds} bind the first token, {found.decode_binds} each further one"


def break_even_text(found: BreakEven) -> str:
    """Say at which link tensor and pipeline parallelism are equally fast."""
    steps = (
        f"TP {found.ranks} {duration_text(found.tensor_step_seconds)}, "
        f"PP {found.ranks} {duration_text(found.pipeline_step_seconds)} between tokens: {found.faster} is faster here"
    )
    slower = "PP is faster" if found.faster.startswith("pipeline") else "TP is faster"
    latency = (
        f"at any latency {slower}"
        if found.latency_seconds is None
        else f"TP is faster below a latency of {duration_text(found.latency_seconds)} (at this rate)"
    )
    rate = (
        f"at any rate {slower}"
        if found.bytes_per_second is None
        else f"above {rate_text(found.bytes_per_second)} (at this latency)"
    )
    return f"{steps}; {latency}; {rate}"
