"""Inputs found step by step: spanning equations, near copies, projection, pre-images, pixels in a box.

Knows phi as a function with derivatives, and no model. Begin with :mod:`jaxdistill.solve.spanning` for the
equations and :func:`jaxdistill.solve.spanning_solver.solve_spanning` for their solution.
"""
