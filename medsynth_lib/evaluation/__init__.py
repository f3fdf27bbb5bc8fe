"""Image metrics and paired statistics."""
