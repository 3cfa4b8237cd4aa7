"""``python -m flash_deploy``: the command line."""

from deploy.cli.main import main

main()
