"""`handoff demo`: two agents hand a task over (story), or many work until they are stopped (work)."""
