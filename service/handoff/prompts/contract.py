"""What a prompt declares: its arguments, how it is written, and how an argument is completed."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from handoff.context import Call


class PromptArguments(BaseModel):
    """The arguments of a prompt. Clients send all of them as text; unknown names are refused.

    The first sentence of each field's description is what a person is shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


A = TypeVar("A", bound=PromptArguments)
Completer = Callable[[Call, str], Awaitable[list[str]]]  # from what is typed so far


@dataclass(frozen=True)
class Prompt(Generic[A]):
    """A prompt's declaration. `write` returns the text of its one message."""

    name: str
    title: str
    description: str
    arguments: type[A]
    write: Callable[[Call, A], Awaitable[str]]
    completers: Mapping[str, Completer] = field(default_factory=dict[str, Any])
