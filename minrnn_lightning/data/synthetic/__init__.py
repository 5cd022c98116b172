"""Examples that are generated while training: selective copying, recall, formal languages."""
