"""What arroyo's tests import and its source distribution leaves out: the package ``tests``."""
