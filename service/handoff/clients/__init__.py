"""Where each MCP client keeps its configuration, and how an entry is written into it: text in, text out."""
