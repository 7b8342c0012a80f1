"""The HTTP API of the control plane: thin routes over the use cases, and every error a problem document."""
