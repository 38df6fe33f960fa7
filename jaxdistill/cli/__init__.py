"""The command ``jaxdistill``: a file a command, thin, no numerics.

Knows everything below it. Begin with :func:`jaxdistill.cli.main.main`; what commands share is in
``options`` (what is asked), ``steps`` (what is done) and ``report`` (what is said).
"""
