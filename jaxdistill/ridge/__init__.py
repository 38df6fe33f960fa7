"""From examples to a model: a source of chunks, moments, the path over all penalties, selection, fit.

Knows feature maps and kernels; nothing of distilled sets. Begin with :func:`jaxdistill.ridge.fit.fit_ridge`,
and for kernels without a finite map with :func:`jaxdistill.ridge.kernel_fit.fit_kernel_ridge`.
"""
