"""What the module does without widgets: MRML in and out, parameters, the worker. No qt in here."""
