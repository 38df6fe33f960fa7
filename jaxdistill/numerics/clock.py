"""When the package began to be imported: the first thing that it does, so that imports count as time too."""

from time import perf_counter

# The start of the process would not do: a shell may become it (``exec``) long after it was started.
STARTED = perf_counter()
