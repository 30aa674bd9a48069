"""Handoff: one agent leaves its session and context to another, durably and exactly, with a receipt."""

from importlib.metadata import version

__version__ = version("handoff-observatory")
