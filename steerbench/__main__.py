"""`python -m steerbench`."""

from steerbench.cli import main

main()
