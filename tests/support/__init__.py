"""What the tests share: backends, threads, children of forks, programs, releases of arroyo."""
