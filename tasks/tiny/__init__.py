"""The embedded default: a small model, its recipe, and data that mirrors each real task."""
