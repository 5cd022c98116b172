"""Examples that are generated on the fly: copying, recall, formal languages."""
