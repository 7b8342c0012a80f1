"""What the control plane keeps in a database: SQLite by default, PostgreSQL by URL."""
