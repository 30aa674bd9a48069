"""The worker's jobs: the table of jobs, the runner, and a module per job. One process at a time runs them."""
