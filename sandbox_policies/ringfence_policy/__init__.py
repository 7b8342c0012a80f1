"""The floor both sides stand on: rules, identity, privacy ledger and evidence. No Flower, no FastAPI, no torch."""
