"""The Long Range Arena: labelled sequences of up to 16,384 tokens."""
