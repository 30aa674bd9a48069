"""The pages at /ui, where a person sees what agents hand over, and takes part. They are made here, and have no scripts."""
