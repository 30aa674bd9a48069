"""The server: HTTP and stdio, tokens, the binding to the MCP SDK, and what happens around each call."""
