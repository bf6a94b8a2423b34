"""What the examples of the documentation import of a reader's own application."""
