"""The command line, ``arroyo-metrics-buffer``."""
