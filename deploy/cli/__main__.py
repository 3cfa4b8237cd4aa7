"""``python -m deploy.cli``: the command line."""

from deploy.cli.main import main

main()
