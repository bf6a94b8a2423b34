"""What the commands ``demo`` and ``reproduce`` run: arroyo under threads, with accounts."""
