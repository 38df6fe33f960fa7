"""What is guaranteed of a released set, and what an attacker gets out of one.

Knows sets, models and how they are made; no file and no command. ``budget`` turns (epsilon, delta) into the
size of Gaussian noise, ``noise`` draws it, ``mechanism`` makes a private model of clipped moments,
``published`` is the calibration of the literature; ``membership``, ``reconstruction`` and ``audit`` attack.
Begin with :func:`jaxdistill.privacy.mechanism.fit_private_ridge`.
"""
