"""Runs the benchmarks: `python -m benchmarks`, in under 15 minutes on two cores that do nothing else."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import (
    bench_cluster,
    bench_engines,
    bench_evaluator,
    bench_nodes,
    bench_objective,
    bench_scaling,
    bench_search,
    bench_store,
    bench_transfer,
    ratios,
    record,
    timing,
)

BENCHMARKS = {
    "engines": bench_engines.measure,
    "nodes": bench_nodes.measure,
    "evaluator": bench_evaluator.measure,
    "store": bench_store.measure,
    "scaling": bench_scaling.measure,
    "cluster": bench_cluster.measure,
}
LONG = {"search": bench_search.main, "objective": bench_objective.main, "transfer": bench_transfer.main}
RESULTS = Path(__file__).with_name("results")


def main() -> None:
    """Runs the benchmarks asked for, prints what they say of the claims, and writes it to `ratios.json`.

    Those of `LONG` are none of them: they take hours, measure no speed, and have options of their own.
    """
    if sys.argv[1:2] and sys.argv[1] in LONG:
        sys.exit(LONG[sys.argv[1]](sys.argv[2:]))
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    told = f"{', '.join(BENCHMARKS)} (default: all these); or {' or '.join(LONG)}, with options of its own"
    parser.add_argument("names", nargs="*", metavar="NAME", help=told)
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not how fast")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where to write")
    arguments = parser.parse_args()
    strange = set(arguments.names) - set(BENCHMARKS)
    if strange:
        parser.error(f"there is no benchmark {', '.join(sorted(strange))}: choose from {', '.join(BENCHMARKS)}")
    timing.use_one_thread()
    summaries = {}
    for name in arguments.names or BENCHMARKS:
        begin = time.monotonic()
        measured = BENCHMARKS[name](arguments.results, arguments.quick)
        summaries |= {key: ratios.summarise(key, values) for key, values in measured.items()}
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    ratios.write(arguments.results, summaries)
    if summaries:
        print(f"\n{ratios.table({record.kind(): summaries})}")


if __name__ == "__main__":
    main()
