"""The tools, one module per noun; `server/catalog.py` lists them."""
