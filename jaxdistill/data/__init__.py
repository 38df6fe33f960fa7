"""Data sets as plain arrays, and what is done to them before a model sees them.

Knows images, tables and targets; nothing of features. Begin with
:func:`jaxdistill.data.datasets.load_dataset`, then :mod:`jaxdistill.data.preprocess`; for examples that
do not fit into memory with :func:`jaxdistill.data.opened.open_training`, by name, or
:func:`jaxdistill.data.stored.open_rows`, from files.
"""
