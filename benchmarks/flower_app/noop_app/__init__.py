"""A Flower app that does nothing: what a round of it takes is what Flower takes."""
