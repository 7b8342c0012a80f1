"""The control plane: use cases over runs, holders and evidence, for an API, pages and the command line."""
