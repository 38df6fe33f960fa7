"""Data sets as plain arrays, and what is done to them before a model sees them.

Knows images, tables and targets; nothing of features. Begin with
:func:`jaxdistill.data.datasets.load_dataset`, then :mod:`jaxdistill.data.preprocess`.
"""
