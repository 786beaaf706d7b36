"""`python -m fusion` is the command `fusion`."""

from fusion.cli import main

main()
