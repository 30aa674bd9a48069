"""Simulated agents at work, behind `handoff demo --work`."""
