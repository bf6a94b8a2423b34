"""``python -m arroyo_metrics_buffer``."""

from ._commands.cli import main

raise SystemExit(main())
