"""The parts of `pretrain.py`: the child under Slicer, data, plan, validation, the finished bundle."""
