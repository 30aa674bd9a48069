"""The worker's jobs: the table of jobs, the runner that does them in one process at a time, and a module per job."""
