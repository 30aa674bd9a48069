"""What is normal, what is not, and why: arrays in, arrays out. No I/O, no clock. Only jobs and cli import it, lazily."""
