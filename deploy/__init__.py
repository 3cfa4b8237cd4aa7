"""The street door: command line, bundles, tiers, the build, and the runtime that needs no torch."""
