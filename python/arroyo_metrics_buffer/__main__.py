"""``python -m arroyo_metrics_buffer``."""

from .cli import main

raise SystemExit(main())
