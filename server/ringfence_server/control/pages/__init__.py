"""Live pages for each role, on the control plane's own application. They hold no rules: every act is a use case's."""
