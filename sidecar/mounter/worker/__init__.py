"""The process of one bucket: wires its parts, decides nothing."""
