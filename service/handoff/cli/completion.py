"""`handoff completion`: prints a shell's completion script, made from the parser."""

import argparse

import shtab

from handoff.cli.parser import parser


def completion_command(arguments: argparse.Namespace) -> int:
    """Print the script for a shell."""
    print(shtab.complete(parser(), shell=arguments.shell))
    return 0
