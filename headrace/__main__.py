"""`python -m headrace`: the command line, as a child process of another Headrace when `headrace.lifeline` says so."""

from headrace import lifeline
from headrace.cli import main

lifeline.follow()
main()
