"""The ground floor: checked factorisations, float64, memory, keys, names, files.

Knows arrays, and nothing of models, features or data. Begin with :mod:`jaxdistill.numerics.linalg`.
"""
