"""`python -m fusion` is the command `fusion`."""

from fusion.cli import app

app(prog_name="fusion")
