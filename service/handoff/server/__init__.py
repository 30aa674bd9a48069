"""How calls come in: HTTP and stdio, who may call, the binding to the MCP SDK, and what happens around each call."""
