"""The INT8 network as data: its nodes, how it is made from a float module, what it costs."""
