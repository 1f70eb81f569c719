"""All benchmarks, one table.

    python -m tests.benchmarks [NAME ...] [--quick] [--json FILE] [--folder FOLDER]

The stand-in for the API runs in a process of its own. Ratios and growth tell more than times do:
compare within one run, and look at the load in the table's head.
"""

from tests.benchmarks import (
    burst,
    ceiling,
    growth,
    idle,
    latency,
    memory,
    phases,
    start,
    sweep,
    throughput,
)
from tests.benchmarks.figures import main

ALL = (
    throughput.BENCHMARK,
    throughput.HUNDRED,
    ceiling.BENCHMARK,
    phases.BENCHMARK,
    growth.BENCHMARK,
    memory.BENCHMARK,
    latency.BENCHMARK,
    start.BENCHMARK,
    sweep.BENCHMARK,
    burst.BENCHMARK,
    idle.BENCHMARK,
)

if __name__ == "__main__":
    main(ALL)
