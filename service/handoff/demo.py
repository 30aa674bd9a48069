"""Two agents hand a task over."""


async def play(url: str, token: str | None) -> int:
    """Play the demo against a service."""
    raise SystemExit(f"not yet: {url} {token is not None}")
