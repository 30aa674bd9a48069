"""The resources, one module per noun; `server/catalog.py` lists them."""
