"""Detection, causes and statistics: arrays in, arrays out. No I/O, no clock, no telemetry."""
