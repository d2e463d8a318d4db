"""A test host for scripted modules: real MRML (slicer-core) and PySide6 with PythonQt manners.

It stands in for the parts of the Slicer application that no package offers. It does not show how PythonQt marshals types,
how the real qMRML and CTK widgets behave, or that Slicer's module factory and packaging accept the module.
Patching is global: import it in a test process only, never from product code.
"""
