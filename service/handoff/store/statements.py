"""Names of SQL statements, for metrics and spans: the constant that holds the text, such as `handoffs.CHANGE`."""

import pkgutil
from functools import cache
from importlib import import_module

import handoff.store

_TRANSACTION = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")  # sent by the driver


@cache
def names() -> dict[str, str]:
    """Return the name of each statement, by its SQL text."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(handoff.store.__path__):
        if module.ispkg:
            continue
        for name, value in vars(import_module(f"handoff.store.{module.name}")).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, str) and " " in value:
                found.setdefault(value, f"{module.name}.{name}")
    return found


def name_of(sql: str) -> str:
    """Return the name of a statement: our constant, the verb of a transaction command of the driver, or `other`."""
    known = names()
    found = known.get(sql)
    if found is None:
        verb = sql[:10].strip().split(" ", 1)[0].rstrip(";").upper()
        found = verb if verb in _TRANSACTION else "other"
        if found != "other":
            known[sql] = found
    return found
