"""What a data holder runs and audits: its data, its gate, its training. Never imports the server."""
