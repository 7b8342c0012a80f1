"""What the neutral coordinator runs: rounds, aggregation, evidence, results. Never imports the client."""
