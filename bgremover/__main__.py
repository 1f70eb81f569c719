"""`python -m bgremover`."""

from bgremover.cli import main

main()
