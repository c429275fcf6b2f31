"""`python -m imgclf train ...`: the same as `imgclf train ...`."""

from imgclf.cli import main

main()
