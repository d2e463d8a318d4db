# Every file of the module. Written by `make cmake-lists`: do not edit.

set(MODULE_PYTHON_SCRIPTS
  )

set(MODULE_PYTHON_RESOURCES
  )
