"""Handoff: lets one agent hand its session and context to another, durably and exactly, with a receipt."""

__version__ = "0.1.0"  # hatchling reads it from here
