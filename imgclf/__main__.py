"""`python -m imgclf train ...`: the same as `imgclf train ...`."""

from imgclf.cli.main import main

main()
