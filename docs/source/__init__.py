"""What the pages in `docs/` say about the code, generated from the code.

`make docs` fills the parts of the pages between `<!-- generated: NAME -->` and `<!-- end -->`:

    calls       tools, resources and limits
    errors      error codes, collected from where they are raised
    settings    settings
    signals     metrics and labels
    operations  alerts and jobs
    markdown    tables
"""
