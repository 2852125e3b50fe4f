"""The first-party strategies."""
