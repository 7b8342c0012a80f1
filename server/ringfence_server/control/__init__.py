"""The control plane: use cases over a site's runs, and in front of them an API and live pages for five roles."""
