"""`python -m morlaif_hub`: the same as the command `morlaif-hub`."""

from morlaif_hub.cli import main

main()
