"""`python -m cmis_stream` is `cmis`."""

from cmis_stream.cli import main

main(prog_name="cmis")
