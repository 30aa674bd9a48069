"""Measures how often the service at fault is named first: `python -m tests.bench.rca [FOLDER]`.

FOLDER holds graph.csv, noissue/metrics.csv and, at any depth, issue_*/ with metrics.csv and target.json;
docs/causes.md has their form.
Without it, faults are put into generated systems (tests/analytics/systems.py).
"""

import argparse
import csv
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handoff.analytics.causes import Cause, Symptom, find_causes
from tests.analytics.systems import generated

ROWS: Final = 5  # of a quiet window, unless the issues have others
Series = Mapping[tuple[str, str, str], NDArray[np.float64]]


@dataclass(frozen=True)
class Issue:
    """A window around a symptom, and the service at fault; None in a quiet window."""

    name: str
    graph: Mapping[str, Sequence[str]]
    past: Series
    now: Series
    symptom: Symptom
    at_fault: str | None


def rank(
    graph: Path | str | Mapping[str, Iterable[str]],
    metrics: Any,
    normal: Any = None,
    target: Mapping[str, Any] | None = None,
) -> list[str]:
    """The services that may be at fault, most likely first; empty if nothing stands out.

    Args:
        graph: who calls whom. A mapping from caller to callees (a networkx.DiGraph is one), or the path of an
        adjacency matrix.
        metrics: the window around the issue. (service, metric, statistic) to values, one per row of time, in a dict or in a
            pandas.DataFrame with those three as columns; or the path of a metrics.csv.
        normal: an ordinary stretch before, in the same form. Without it, the last 5 rows of `metrics` are judged by
        all before.
        target: where the issue was noticed: {"node": ..., "metric": "latency" or "availability", "agg": "Average"}.
        Without it,
            both metrics of every service that no other calls are tried, and the one with the clearest cause counts.
    """
    calls = _calls(graph)
    window = _series(metrics)
    if normal is None:
        past, window = (
            {key: values[:-ROWS] for key, values in window.items()},
            {key: values[-ROWS:] for key, values in window.items()},
        )
    else:
        past = _series(normal)
    if target is not None:
        symptoms = [Symptom(target["node"], target["metric"], target.get("agg") or "Average")]
    else:
        callees = {callee for caller, some in calls.items() for callee in some if callee != caller}
        measured = {service for service, _, _ in window}
        entries = [service for service in calls if service in measured and service not in callees] or sorted(
            measured & calls.keys()
        )
        symptoms = [Symptom(service, kind) for service in entries for kind in ("latency", "availability")]
    found = [find_causes(calls, past, window, symptom) for symptom in symptoms]
    return [cause.service for cause in max(found, key=_clearest, default=[])]


def _clearest(causes: list[Cause]) -> float:
    return max((cause.evidence.strength for cause in causes), default=0.0)


def _calls(graph: Path | str | Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    if not isinstance(graph, Path | str):
        return {caller: list(graph[caller]) for caller in graph}
    with Path(graph).open(encoding="utf-8", newline="") as file:
        (_, *callees), *lines = csv.reader(file)
    return {
        caller: [callee for callee, calls in zip(callees, cells, strict=True) if float(calls or 0)]
        for caller, *cells in lines
        if caller
    }


def _series(metrics: Any) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    if not isinstance(metrics, Path | str):
        return {(str(s), str(m), str(a)): np.asarray(values, dtype=np.float64) for (s, m, a), values in metrics.items()}
    with Path(metrics).open(encoding="utf-8", newline="") as file:
        (_, *services), (_, *names), (_, *statistics), *lines = csv.reader(file)
    rows = [[float(cell) if cell else np.nan for cell in cells] for time, *cells in lines if time.replace(".", "").isdigit()]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(services))
    return {key: table[:, column] for column, key in enumerate(zip(services, names, statistics, strict=True))}


def recorded(folder: Path) -> tuple[list[Issue], list[Issue]]:
    """The issues of a folder, and its quiet windows: noissue/ in pieces, at each service where an issue was noticed."""
    graph, past = _calls(folder / "graph.csv"), _series(folder / "noissue" / "metrics.csv")
    issues: list[Issue] = []
    for path in sorted(folder.glob("**/issue_*/target.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        target = told["target"]
        symptom = Symptom(target["node"], target["metric"], target["agg"])
        name = f"{path.parent.parent.name}/{path.parent.name}"
        issues.append(Issue(name, graph, past, _series(path.parent / "metrics.csv"), symptom, told["root_cause"]["node"]))
    rows = len(next(iter(issues[0].now.values()))) if issues else ROWS
    quiet = [
        Issue(
            f"quiet {start}", graph, past, {key: values[start : start + rows] for key, values in past.items()}, symptom, None
        )
        for symptom in dict.fromkeys(issue.symptom for issue in issues)
        for start in range(0, len(next(iter(past.values()))) - rows + 1, rows)
    ]
    return issues, quiet


def made() -> tuple[list[Issue], list[Issue]]:
    """The same of generated systems."""
    issues: list[Issue] = []
    quiet: list[Issue] = []
    for seed in range(60):
        for kind in ("latency", "availability"):
            system = generated(seed)
            symptom = Symptom(system.entry, kind)
            at_fault, now = system.faulty(kind)
            issues.append(Issue(f"generated {seed}", system.graph, system.past, now, symptom, at_fault))
            quiet.append(Issue(f"generated {seed}", system.graph, system.past, system.quiet(), symptom, None))
    return issues, quiet


def without_counts(issue: Issue) -> Issue:
    """Nobody counts calls."""
    return _only(issue, lambda key: key[1] != "requests")


def without_means(issue: Issue) -> Issue:
    """Latency has percentiles only."""
    return _only(issue, lambda key: key[1] != "latency" or key[2] != "Average")


def renamed(issue: Issue) -> Issue:
    """Every service has another name, and another place in the order."""
    names = sorted({key[0] for key in issue.past} | {key[0] for key in issue.now} | set(issue.graph))
    new = {name: f"s{(number * 7919) % 10007}" for number, name in enumerate(names)}
    return Issue(
        issue.name,
        {
            new.get(caller, caller): [new.get(callee, callee) for callee in callees]
            for caller, callees in issue.graph.items()
        },
        {(new[key[0]], *key[1:]): values for key, values in issue.past.items()},
        {(new[key[0]], *key[1:]): values for key, values in issue.now.items()},
        Symptom(new[issue.symptom.service], issue.symptom.metric, issue.symptom.statistic),
        new[issue.at_fault] if issue.at_fault else None,
    )


def shorter(issue: Issue) -> Issue:
    """The window lacks its first and its last row."""
    return Issue(
        issue.name,
        issue.graph,
        issue.past,
        {key: values[1:-1] for key, values in issue.now.items()},
        issue.symptom,
        issue.at_fault,
    )


def longer(issue: Issue) -> Issue:
    """Ten rows of the past come first, for each issue others."""
    at = zlib.crc32(issue.name.encode()) % (len(next(iter(issue.past.values()))) - 10)
    calm = np.full(10, np.nan)
    now = {
        key: np.concatenate([issue.past[key][at : at + 10] if key in issue.past else calm, values])
        for key, values in issue.now.items()
    }
    return Issue(issue.name, issue.graph, issue.past, now, issue.symptom, issue.at_fault)


def short_past(issue: Issue) -> Issue:
    """The past has 60 rows."""
    return Issue(
        issue.name,
        issue.graph,
        {key: values[-60:] for key, values in issue.past.items()},
        issue.now,
        issue.symptom,
        issue.at_fault,
    )


def unmeasured(issue: Issue) -> Issue:
    """A fifth of the services that are neither at fault nor the symptom's have no metrics."""
    kept = {issue.symptom.service, issue.at_fault}
    gone = {name for number, name in enumerate(sorted(set(issue.graph) - kept)) if number % 5 == len(issue.name) % 5}
    return _only(issue, lambda key: key[0] not in gone)


def _only(issue: Issue, keep: Callable[[tuple[str, str, str]], bool]) -> Issue:
    past, now = ({key: values for key, values in each.items() if keep(key)} for each in (issue.past, issue.now))
    return Issue(issue.name, issue.graph, past, now, issue.symptom, issue.at_fault)


VARIANTS: Final[Mapping[str, Callable[[Issue], Issue]]] = {
    "as recorded": lambda issue: issue,
    "renamed": renamed,
    "shorter window": shorter,
    "longer window": longer,
    "60 rows of past": short_past,
    "no call counts": without_counts,
    "percentiles only": without_means,
    "a fifth unmeasured": unmeasured,
}


def place(issue: Issue) -> int | None:
    """The rank of the service at fault, from 1, or None. Of a quiet window: 1 if anything is named."""
    target = {"node": issue.symptom.service, "metric": issue.symptom.metric, "agg": issue.symptom.statistic}
    named = rank(issue.graph, issue.now, issue.past, target)
    if issue.at_fault is None:
        return 1 if named else None
    return named.index(issue.at_fault) + 1 if issue.at_fault in named else None


def measured(issues: Sequence[Issue], quiet: Sequence[Issue]) -> dict[str, float]:
    """Top-1 and top-3, and the share of the quiet windows in which nothing is named."""
    result: dict[str, float] = {}
    places = [(issue.symptom.metric, place(issue) or sys.maxsize) for issue in issues]
    for kind in ("latency", "availability", "all"):
        some = [where for metric, where in places if kind in ("all", metric)]
        for top in (1, 3):
            result[f"{kind} top-{top}"] = sum(where <= top for where in some) / max(1, len(some))
    result["quiet"] = sum(place(window) is None for window in quiet) / max(1, len(quiet))
    return result


def main() -> int:
    """Measure every variant, and print one line of a table for each."""
    parser = argparse.ArgumentParser(prog="tests.bench.rca", description="How often the service at fault is named first.")
    parser.add_argument("folder", nargs="?", type=Path, help="labelled issues; without it, generated ones")
    folder = parser.parse_args().folder
    if folder and not (folder / "graph.csv").is_file():
        print(f"There is no {folder / 'graph.csv'}. docs/causes.md says what the folder must hold.")
        return 1
    issues, quiet = recorded(folder) if folder else made()
    print(f"{len(issues)} issues, {len(quiet)} quiet windows\n")
    print("| | latency top-1 / top-3 | availability top-1 / top-3 | all top-1 / top-3 | quiet windows with nothing named |")
    print("|---|---|---|---|---|")
    for name, change in VARIANTS.items():
        figures = measured([change(issue) for issue in issues], [change(window) for window in quiet])
        cells = [
            f"{figures[f'{kind} top-1']:.3f} / {figures[f'{kind} top-3']:.3f}" for kind in ("latency", "availability", "all")
        ]
        print(f"| {name} | {' | '.join(cells)} | {figures['quiet']:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
