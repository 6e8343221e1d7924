"""What runs an INT8 network: one interface, a fast engine, a portable one, and a slow, plain twin."""
