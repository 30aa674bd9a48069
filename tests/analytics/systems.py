"""Systems of services that call one another, with a known service at fault: what rankings of causes are tried on."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Series = dict[tuple[str, str, str], NDArray[np.float64]]
Kind = str


@dataclass
class System:
    """Services of an entry and three tiers. Each calls some of the tier below, now and then or several times per call."""

    graph: dict[str, list[str]]
    entry: str
    calls: dict[tuple[str, str], float]  # per call of the caller
    takes: dict[str, float]  # seconds per call, without its callees
    traffic: float  # calls of the entry per row
    rng: np.random.Generator
    past: Series

    def faulty(self, kind: Kind, rows: int = 5) -> tuple[str, Series]:
        """A window whose last two rows have a fault, and the service at fault. Its callers feel it by what they call."""
        reached = self._per_entry()
        busy = [service for service in self.graph if self.traffic * reached[service] >= 20]
        at_fault = str(self.rng.choice(busy))
        amount = np.zeros(rows)
        usual = self._mean(self.entry)
        failing = max(0.04, 15 / self.traffic)  # of the entry's calls: less than a dozen failures, and nobody would ask
        amount[-3:-1] = (0.5 * usual if kind == "latency" else failing) / reached[at_fault]
        return at_fault, self.rows(rows, {at_fault: (kind, amount)})

    def quiet(self, rows: int = 5) -> Series:
        return self.rows(rows, {})

    def _per_entry(self) -> dict[str, float]:
        reached = dict.fromkeys(self.graph, 0.0)
        reached[self.entry] = 1.0
        for caller in self.graph:  # in the order of the tiers
            for callee in self.graph[caller]:
                reached[callee] += reached[caller] * self.calls[caller, callee]
        return reached

    def _mean(self, service: str) -> float:
        return self.takes[service] + sum(self.calls[service, callee] * self._mean(callee) for callee in self.graph[service])

    def rows(self, rows: int, faults: dict[str, tuple[Kind, NDArray[np.float64]]]) -> Series:
        """Latency adds up along the calls, and so do failures. Traffic has waves; each service has its own noise."""
        wave = 1 + 0.3 * np.sin(np.arange(rows) / 30 + self.rng.uniform(0, 6))
        reached = self._per_entry()
        latency: dict[str, NDArray[np.float64]] = {}
        failing: dict[str, NDArray[np.float64]] = {}
        series: Series = {}
        for service in reversed(self.graph):
            kind, amount = faults.get(service, ("none", np.zeros(rows)))
            mean = self.takes[service] * self.rng.lognormal(0, 0.1, rows) + (amount if kind == "latency" else 0)
            failed = np.full(rows, 0.0002) + (amount if kind == "availability" else 0)
            for callee in self.graph[service]:
                mean = mean + self.calls[service, callee] * latency[callee]
                failed = failed + self.calls[service, callee] * failing[callee]
            latency[service], failing[service] = mean, np.clip(failed, 0, 1)
            counts = self.rng.poisson(self.traffic * reached[service] * wave).astype(np.float64)
            failures = self.rng.binomial(counts.astype(np.int64), failing[service])
            there = counts > 0
            series[service, "requests", "Sum"] = counts
            series[service, "latency", "Average"] = np.where(there, mean, np.nan)
            series[service, "latency", "p90"] = np.where(there, 2 * mean * self.rng.lognormal(0, 0.05, rows), np.nan)
            series[service, "availability", "Average"] = np.where(
                there, 100 * (1 - failures / np.maximum(counts, 1)), np.nan
            )
        return series


def generated(seed: int, rows: int = 300) -> System:
    """A system of about 20 services and its ordinary past."""
    rng = np.random.default_rng(seed)
    tiers = [
        ["entry"],
        *([f"{name}{number}" for number in range(count)] for name, count in (("api", 4), ("worker", 7), ("store", 6))),
    ]
    graph: dict[str, list[str]] = {}
    for tier, below in pairwise(tiers):
        for service in tier:
            graph[service] = [
                str(one) for one in rng.choice(below, size=min(len(below), int(rng.integers(1, 4))), replace=False)
            ]
    graph |= {service: [] for service in tiers[-1]}
    calls = {(caller, callee): float(rng.choice([0.3, 1.0, 1.0, 3.0])) for caller in graph for callee in graph[caller]}
    takes = {service: float(rng.lognormal(-4, 1)) for service in graph}
    system = System(graph, "entry", calls, takes, float(rng.choice([100, 500, 3000])), rng, {})
    system.past = system.rows(rows, {})
    return system
