"""Disease classification from the frozen encoder of a T3D-style training, with and without text."""
