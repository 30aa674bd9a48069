"""`make fuzz`: 20,000 mutated requests over HTTP and 2,000 over stdio, to a service of its own. `--seed N` varies them."""

import argparse
import asyncio
import sys

from handoff.cli.embedded import ensure_database, postgres
from tests.fuzz.run import GROWTH_BYTES_MAX, over_http, over_stdio
from tests.processes import passable_folder, serving


def main() -> int:
    """Run, and print what came of it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with passable_folder() as folder, postgres(folder) as server:
        url = asyncio.run(ensure_database(server))
        with serving(database_url=url, log_level="error") as service:
            outcome = asyncio.run(over_http(service, options.requests, options.seed))
            is_alive = service.process.poll() is None
        lines = over_stdio(url, options.requests // 10, options.seed + 1)
    for told in (*outcome.bad, *lines.bad)[:20]:
        print(told)
    bad, growth = len(outcome.bad) + len(lines.bad), outcome.growth_bytes
    first, last = (size >> 20 for size in outcome.memory_bytes)
    print(f"statuses: {dict(sorted(outcome.statuses.items()))}; memory: {first} MiB after a quarter, {last} MiB at the end")
    print(f"{options.requests} requests over HTTP and {options.requests // 10} over stdio: {bad} answered badly")
    return int(bad > 0 or not is_alive or growth > GROWTH_BYTES_MAX)


if __name__ == "__main__":
    sys.exit(main())
