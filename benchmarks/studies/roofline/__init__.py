"""Where the shares and ranges of :mod:`benchmarks.forecast.roofline` come from."""
