"""The plugin for Claude Code: its hooks are those of `handoff connect`, and its skill names what there is."""

import json
import re
from pathlib import Path

import yaml

from handoff import __version__
from handoff.cli.parser import parser
from handoff.clients.hooks import HOOKS
from handoff.server.catalog import TOOLS

PLUGIN = Path(__file__).parent.parent / "plugins" / "claude-code"
SKILL = (PLUGIN / "skills" / "handing-over" / "SKILL.md").read_text()


def test_its_hooks_are_those_that_connect_installs_and_their_commands_can_be_parsed() -> None:
    hooks, known = json.loads((PLUGIN / "hooks" / "hooks.json").read_text())["hooks"], HOOKS["claude-code"]
    assert tuple(hooks) == known.events
    for event, entries in hooks.items():
        command = entries[0]["hooks"][0]["command"]
        assert entries == [known.entry(command)]
        program, *arguments = command.split()
        assert program == "handoff"
        assert parser().parse_args(arguments).event == event


def test_the_marketplace_leads_to_the_plugin_and_both_say_the_same() -> None:
    listed = json.loads((PLUGIN.parent.parent / ".claude-plugin" / "marketplace.json").read_text())["plugins"]
    plugin = json.loads((PLUGIN / ".claude-plugin" / "plugin.json").read_text())
    assert [(it["name"], it["description"]) for it in listed] == [(plugin["name"], plugin["description"])]
    assert (PLUGIN.parent.parent / listed[0]["source"]).resolve() == PLUGIN
    assert plugin["version"] == __version__


def test_the_skill_has_its_heading_and_names_only_tools_and_commands_that_there_are() -> None:
    _, head, text = SKILL.split("---\n", 2)
    said = yaml.safe_load(head)
    assert set(said) == {"name", "description"}
    assert said["name"] == "handing-over"
    assert len(said["description"]) < 1_024  # https://code.claude.com/docs/en/skills
    tools = {tool.name for tool in TOOLS}
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", text)) - {
        "tool_call",
        "session_key",
        "handoff_id",
        "target_agent",
        "target_capability",
    }
    assert named
    assert named <= tools
    for command in re.findall(r"`handoff ([a-z]+) ", text):
        assert command in parser().format_help()
