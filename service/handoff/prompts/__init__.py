"""Prompts: what a person can ask a client for, one module per noun."""
