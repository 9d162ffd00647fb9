"""The public functions: a bundle from budget to served model, in Python.

Import them from the package: ``import regnet_deploy as rd``, then ``rd.select(...)``. The command line calls the same
functions. Options have the defaults of the command line, except that :func:`regnet_deploy.serve` takes a free port. A
function that takes long reports to ``progress``, an object with the methods of
:class:`regnet_deploy.progress.Progress`; by default nothing is reported.

Errors that the caller can act on are subclasses of :class:`regnet_deploy.errors.RegnetDeployError`.
"""
