"""Simulated consortia that ship with the wheel: each a plain directory, the same shape as a user's own."""
