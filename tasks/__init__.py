"""The first-party tasks and streams."""
