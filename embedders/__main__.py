"""`python -m embedders`."""

from embedders.cli import main

main()
