"""Where the buckets of the histograms end, by what is measured."""

from typing import Final

# Seconds. A good call takes 1 to 3 ms, and the conventions' buckets begin at 10 ms, so there are finer ones below.
_FINE_S: Final = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075)
CALL_S: Final = (*_FINE_S, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.5, 2.5, 5.5, 10.5, 30.5)
STATEMENT_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.5, 5.5)
WAIT_S: Final = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.5, 5.5)
CACHE_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
PEOPLE_S: Final = (0.5, 2.5, 5.5, 15.5, 30.5, 60.5, 120.5, 300.5, 600.5, 1800.5, 3600.5, 14400.5, 86400.5, 604800.5)
# All below a million: above it, Prometheus writes 1.0485765e+06 for an edge that it scrapes, 1048576.5 for one by OTLP.
SIZE_BYTES: Final = (64.5, 256.5, 1024.5, 4096.5, 16384.5, 65536.5, 102400.5, 262144.5, 524288.5, 999999.5)
TOKENS: Final = (100.5, 250.5, 500.5, 1000.5, 1500.5, 2500.5, 5000.5, 10000.5, 20000.5)
BATCH: Final = (1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5)  # no integers: `le="1"` and `le="1.0"` are different labels
LAG_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.5)
