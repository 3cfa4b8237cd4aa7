"""One-off measurements behind figures of the docs, each a command of its own."""
