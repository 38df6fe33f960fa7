"""``python -m jaxdistill``: the command line."""

from jaxdistill.cli.main import main

raise SystemExit(main())
