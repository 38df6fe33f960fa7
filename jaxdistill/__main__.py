"""``python -m jaxdistill``: the command line."""

from jaxdistill.cli import main

raise SystemExit(main())
