"""`python -m supervisor.cli` is the command `supervisor`."""

from supervisor.cli.main import main

main()
