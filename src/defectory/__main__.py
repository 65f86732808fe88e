"""`python -m defectory` is the command `defectory`."""

from defectory.cli.main import main

main()
