"""The artifact: what a distilled set is, saved and loaded as one .npz without pickle; moments likewise.

Knows feature maps, kernels and preprocessing, whose parts it stores; not how a set was made. Begin with
:class:`jaxdistill.sets.artifact.DistilledSet`, and for moments that outlive a pass with
:func:`jaxdistill.sets.saved_moments.collect_moments`.
"""
